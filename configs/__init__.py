"""What a run is: the typed configuration and how it is read."""

from .errors import ConfigError, EpithreBeamError
from .load import load_config
from .schema import (
    AssetKind,
    CatalogConfig,
    EmbedConfig,
    GateConfig,
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
    "EpithreBeamError",
    "GateConfig",
    "IndexConfig",
    "MetadataType",
    "PrepareConfig",
    "RunConfig",
    "SourceConfig",
    "load_config",
]
