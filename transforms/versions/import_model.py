"""What a folder of vectors says about the model that made them, as settings of the catalog that imports them."""

from dataclasses import dataclass, field
from typing import Any

from ...configs.errors import ConfigError
from ...configs.schema import EMULATOR, UNKNOWN_MODEL
from ...index.storage.store import Store
from ...index.vectors.folder_mark import read_mark
from ..epithre.emulator import EmulatorSettings, emulator_fingerprint

_EPITHRE = "epithre"


@dataclass(frozen=True, kw_only=True)
class ImportModel:
    """The model of imported vectors."""

    embed: dict[str, Any] = field(default_factory=dict)
    """The settings that queries need to be embedded by the same model."""
    fingerprint: str | None = None
    """The fingerprint of an emulator; None for any other server."""


def import_model(folder: str, named: str | None) -> ImportModel:
    """Return the model of a folder's vectors: as `WriteVectors` recorded it, or as the user names it.

    Args:
        folder: An absolute path or a URL of a folder, or of one Parquet file, which states no model.
        named: The model that the user names; None: the folder's own.

    Raises:
        ConfigError: If the user names another model than the folder.
    """
    mark = read_mark(Store(folder))
    made_by = None if mark is None else mark.made_by
    if made_by is None:
        return ImportModel(embed={"model": named or UNKNOWN_MODEL})
    if named not in {None, made_by.model}:
        raise ConfigError(
            f"--model must be {made_by.model!r}, the model that made the vectors of {folder}, got {named!r}. "
            "Leave it out."
        )
    embed: dict[str, Any] = {"model": made_by.model}
    if made_by.dialect != _EPITHRE:
        # A dialect of another provider needs its address and key, which a folder does not know.
        return ImportModel(embed=embed, fingerprint=made_by.server)
    if made_by.server is not None:
        for model in ("attributes", "hash"):
            settings = EmulatorSettings(model=model, dimension=made_by.dimension)
            if emulator_fingerprint(settings) == made_by.server:
                embed |= {"base_url": EMULATOR, "emulator_model": model}
    return ImportModel(embed=embed, fingerprint=made_by.server)
