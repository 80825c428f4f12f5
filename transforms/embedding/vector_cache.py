"""The cache of `EmbedAssets`: vectors by content, in a catalog or in a folder.

Newly embedded contents become unit files, one a batch, before their vectors leave the transform. A catalog's next run
reuses them like the units of a run that was stopped. In a folder of vectors they are in a hidden folder, so that tools
that read the vectors do not see them.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...configs import CatalogConfig, EmbedConfig, PrepareConfig
from ...configs.errors import CatalogError
from ...index.storage.store import Store
from ...index.vectors.folder_mark import read_mark
from ...index.vectors.reusable import ReusableVector, ReusableVectors
from ...index.vectors.units import write_unit
from ...index.versions.complete import existing_versions
from ...index.versions.layout import asset_fields
from ...index.versions.manifest import read_manifest
from ..planning.embedding_config import differences, made_by_json, request_config_hash
from ..sources.references import Reference
from .assets import Facts, row_of

_VERSIONS = 2
_HIDDEN = "_cache"
"""The folder below a folder of vectors in which new ones are kept."""

NewVector = tuple[Reference, Facts, npt.NDArray[np.float32]]
"""An asset that was sent, and its vector."""


class CachedVectors:
    """Finds vectors in several places."""

    def __init__(self, *places: ReusableVectors) -> None:
        self._places = places

    def find(self, kind: str, content_sha256: str) -> ReusableVector | None:
        """Return the vector of an asset of this kind and content, or None."""
        return next(self.find_all(kind, content_sha256), None)

    def find_all(self, kind: str, content_sha256: str) -> Iterator[ReusableVector]:
        """Return all vectors of assets of this kind and content."""
        return itertools.chain.from_iterable(place.find_all(kind, content_sha256) for place in self._places)


class VectorCache:
    """Vectors by content, made by one model with one request. Thread-safe.

    Args:
        folder: A catalog, a folder that `WriteVectors` wrote, or any other folder: a path or an fsspec URL.
        embed: Model and request; vectors made by others are not used.
        prepare: The settings that images are prepared with. Each stored image states its own.
        fingerprint: The fingerprint of an emulator; None for the API itself.
    """

    def __init__(self, folder: str, embed: EmbedConfig, prepare: PrepareConfig, fingerprint: str | None) -> None:
        self._store = Store(folder)
        self._config = CatalogConfig(catalog=folder, embed=embed, prepare=prepare)
        self._fingerprint = fingerprint
        self._hash = request_config_hash(embed, fingerprint)
        self._made_by = made_by_json(embed, fingerprint)
        self._mark = read_mark(self._store)
        self._kept = self._store if self._mark is None else Store(f"{self._store.url}/{_HIDDEN}")

    def open(self) -> CachedVectors:
        """Read which contents there are."""
        manifests = []
        for version in reversed(existing_versions(self._store)):
            with contextlib.suppress(CatalogError):
                manifest = read_manifest(self._store, version)
                if not differences(manifest, self._config, self._fingerprint):
                    manifests.append(manifest)
            if len(manifests) == _VERSIONS:
                break
        is_alike = self._mark is not None and self._mark.made_by_json == self._made_by
        folder = self._mark if is_alike else None
        places = [ReusableVectors(self._store, manifests, self._hash, folder=folder)]
        if self._kept is not self._store:
            places.append(ReusableVectors(self._kept, [], self._hash))
        return CachedVectors(*places)

    def keep(self, new: Sequence[NewVector]) -> None:
        """Write vectors, each kind into a file of its own. The same vectors have the same names."""
        for kind in sorted({reference.kind for reference, _, _ in new}):
            its = [entry for entry in new if entry[0].kind == kind]
            digest = hashlib.sha256(bytes.fromhex(self._hash) + kind.encode())
            for reference, facts, _ in its:
                for value in (reference.asset_id, facts.content_sha256, facts.prepared or ""):
                    data = value.encode()
                    digest.update(len(data).to_bytes(8, "little") + data)
            rows = [row_of(reference, facts) for reference, facts, _ in its]
            write_unit(
                self._kept,
                digest.hexdigest()[:40],
                pa.Table.from_pylist(rows, schema=pa.schema(asset_fields())),
                np.stack([vector for _, _, vector in its]),
                [],
                deduplicated=0,
                embedding_config_hash=self._hash,
            )
