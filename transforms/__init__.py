"""The public transforms for pipelines of your own. Importing this package does not import Beam; using a name does."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalog_elements import CatalogOutcome as CatalogOutcome
    from .catalog_elements import CatalogResult as CatalogResult
    from .catalog_elements import DeadQuery as DeadQuery
    from .catalog_elements import Query as Query
    from .catalog_elements import SearchHit as SearchHit
    from .catalog_elements import SearchResult as SearchResult
    from .chat_assets import ChatAssets as ChatAssets
    from .chat_elements import ChatAnswer as ChatAnswer
    from .chat_elements import ChatResult as ChatResult
    from .chat_elements import ChatRow as ChatRow
    from .chat_elements import DeadChatRow as DeadChatRow
    from .elements import Asset as Asset
    from .elements import DeadAsset as DeadAsset
    from .elements import EmbeddedAsset as EmbeddedAsset
    from .elements import EmbedResult as EmbedResult
    from .embed_assets import EmbedAssets as EmbedAssets
    from .read_assets import ReadAssets as ReadAssets
    from .read_assets import ReadResult as ReadResult
    from .search_catalog import SearchCatalog as SearchCatalog
    from .write_catalog import WriteCatalog as WriteCatalog
    from .write_vectors import VectorFile as VectorFile
    from .write_vectors import WriteVectors as WriteVectors

_MODULES = {
    "Asset": "elements",
    "CatalogOutcome": "catalog_elements",
    "CatalogResult": "catalog_elements",
    "ChatAnswer": "chat_elements",
    "ChatAssets": "chat_assets",
    "ChatResult": "chat_elements",
    "ChatRow": "chat_elements",
    "DeadAsset": "elements",
    "DeadChatRow": "chat_elements",
    "DeadQuery": "catalog_elements",
    "EmbedAssets": "embed_assets",
    "EmbedResult": "elements",
    "EmbeddedAsset": "elements",
    "Query": "catalog_elements",
    "ReadAssets": "read_assets",
    "ReadResult": "read_assets",
    "SearchCatalog": "search_catalog",
    "SearchHit": "catalog_elements",
    "SearchResult": "catalog_elements",
    "VectorFile": "write_vectors",
    "WriteCatalog": "write_catalog",
    "WriteVectors": "write_vectors",
}
"""The public names, and the modules that define them."""

__all__ = [
    "Asset",
    "CatalogOutcome",
    "CatalogResult",
    "ChatAnswer",
    "ChatAssets",
    "ChatResult",
    "ChatRow",
    "DeadAsset",
    "DeadChatRow",
    "DeadQuery",
    "EmbedAssets",
    "EmbedResult",
    "EmbeddedAsset",
    "Query",
    "ReadAssets",
    "ReadResult",
    "SearchCatalog",
    "SearchHit",
    "SearchResult",
    "VectorFile",
    "WriteCatalog",
    "WriteVectors",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_MODULES[name]}", __name__)
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs Apache Beam. Install the extra `beam`, in the checkout: "
            "pip install -c constraints.txt '.[beam]'.",
            name=error.name,
        ) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
