"""The typed configuration of a run, and its loading."""

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
