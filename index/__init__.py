"""The catalog: vectors as Parquet, one FAISS index a kind, and how to open and search them without Beam."""

from .catalog import Catalog, Hit, open_catalog
from .layout import DeadLetter, Reason
from .manifest import CatalogError, Manifest, read_latest, read_manifest
from .store import Store, StoreError

__all__ = [
    "Catalog",
    "CatalogError",
    "DeadLetter",
    "Hit",
    "Manifest",
    "Reason",
    "Store",
    "StoreError",
    "open_catalog",
    "read_latest",
    "read_manifest",
]
