"""Embed images and texts with epithre-embed on Apache Beam, keep them as Parquet, search them with FAISS.

The code is in the folders `configs`, `index`, `transforms` and `pipelines` of the repository, which are subpackages of
this package: a wheel with a top-level `index` or `configs` would overwrite files of other packages.
"""

from pathlib import Path

from .installs import refuse_second_install

__version__ = "0.1.0"

_HERE = Path(__file__).parent
refuse_second_install(_HERE)
if not (_HERE / "configs").exists() and (_HERE.parent / "pyproject.toml").is_file():
    __path__.append(str(_HERE.parent))  # an unpacked source distribution, which has no links to the folders
