"""The catalog: vectors as Parquet, one FAISS index a kind, and how to open and search them without Beam."""

from .catalog import Catalog, open_catalog
from .following import FollowingCatalog
from .hits import Asset, Hit
from .layout import DeadLetter, Reason
from .manifest import CatalogError, Manifest, read_latest, read_manifest
from .store import Store, StoreError

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
