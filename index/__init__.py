"""The catalog: vectors as Parquet, one FAISS index per kind, and functions to open and search it without Beam."""

from ..configs.errors import CatalogError, StoreError
from .search.catalog import Catalog
from .search.following import FollowingCatalog
from .search.hits import Asset, Hit
from .search.opening import open_catalog
from .storage.store import Store
from .versions.latest import read_latest
from .versions.layout import DeadLetter, Reason
from .versions.manifest import Manifest, read_manifest

__all__ = [
    "Asset",
    "Catalog",
    "CatalogError",
    "DeadLetter",
    "FollowingCatalog",
    "Hit",
    "Manifest",
    "Reason",
    "Store",
    "StoreError",
    "open_catalog",
    "read_latest",
    "read_manifest",
]
