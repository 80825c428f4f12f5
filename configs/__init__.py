"""What a run is: the typed configuration and how it is read."""

from .load import ConfigError, load_config
from .schema import (
    AssetKind,
    CatalogConfig,
    EmbedConfig,
    GuardConfig,
    IndexConfig,
    MetadataType,
    PrepareConfig,
    RunConfig,
    SourceConfig,
)

__all__ = [
    "AssetKind",
    "CatalogConfig",
    "ConfigError",
    "EmbedConfig",
    "GuardConfig",
    "IndexConfig",
    "MetadataType",
    "PrepareConfig",
    "RunConfig",
    "SourceConfig",
    "load_config",
]
