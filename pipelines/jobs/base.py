"""What a run starts from: its references, and the version in force if its vectors may be taken over."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...configs import CatalogConfig, IndexConfig, PrepareConfig, SourceConfig
from ...configs.errors import CatalogError, OtherJobError
from ...configs.schema import EMULATOR, is_loopback, stored_prepare
from ...index.storage.store import Store
from ...index.versions.files import check_file
from ...index.versions.latest import Latest
from ...index.versions.layout import version_folder
from ...index.versions.manifest import Manifest, read_manifest
from ...transforms.epithre.emulator import EmulatorSettings, emulator_fingerprint
from ...transforms.planning.compare import Comparison, Overlap
from ...transforms.planning.plan import iterate_references
from ...transforms.planning.embedding_config import differences
from ..console.logs import log_event


@dataclass(frozen=True, kw_only=True)
class Base:
    """The version in force, as a run sees it."""

    manifest: Manifest | None
    """None when nothing is published, or its manifest is damaged."""
    reasons: tuple[str, ...]
    """Why its vectors may not be taken over."""
    fingerprint: str | None
    """Of the model that the run will ask, as far as it is known."""
    is_certain: bool
    """Whether the model is known without asking the server."""

    @property
    def usable(self) -> Manifest | None:
        return None if self.reasons else self.manifest


@contextlib.contextmanager
def compare(
    sources: Sequence[SourceConfig], metadata_types: Mapping[str, str], label: str = "sources"
) -> Iterator[Comparison]:
    """Lists all sources, to be compared with a version.

    Args:
        sources: Of the job.
        metadata_types: The metadata columns of all of them.
        label: What the job calls them.

    Raises:
        ConfigError: When a source matches nothing or lacks a column.
        SourceError: When a source cannot be read, or two assets of a kind share an id.
    """
    with Comparison(metadata_types) as comparison:
        for table in iterate_references(sources, metadata_types, label, comparison.passed_over):
            comparison.add_references(table)
        comparison.check_ids(sources, label)
        yield comparison


_NOT_ASKED = "not asked"


def find_base(config: CatalogConfig, store: Store, latest: Latest | None, fingerprint: str | None = _NOT_ASKED) -> Base:
    """The version in force, and whether its vectors may be taken over.

    Args:
        config: Of the run.
        store: The catalog.
        latest: LATEST.json; None when nothing is published.
        fingerprint: What the server said of its model. Not given: it is taken to be the one that it was when the
            version was made, if it is asked at the same address; the emulator that a run starts is known.
    """
    manifest = None
    reasons: tuple[str, ...] = ()
    if latest is not None:
        try:
            manifest = read_manifest(store, latest.version, latest.manifest_sha256)
        except CatalogError as error:  # its files cannot be trusted, so all is read again
            reasons = (str(error).removesuffix("."),)
    is_certain = True
    if fingerprint == _NOT_ASKED:
        if config.embed.base_url == EMULATOR:
            settings = EmulatorSettings(model=config.embed.emulator_model, dimension=config.embed.dimension)
            fingerprint = emulator_fingerprint(settings)
        else:
            fingerprint = manifest.model_fingerprint if manifest else None
            before = manifest.config.get("embed", {}).get("base_url") if manifest else None
            is_certain = manifest is not None and before == config.embed.base_url
    if manifest is not None:
        reasons = tuple(differences(manifest, config, fingerprint))
        if not is_certain and manifest.model_fingerprint is not None and not is_loopback(config.embed.base_url):
            reasons += (f"the vectors came from {manifest.model_fingerprint}, which {config.embed.base_url} is not",)
    return Base(manifest=manifest, reasons=reasons, fingerprint=fingerprint, is_certain=is_certain)


def overlap(comparison: Comparison, store: Store, current: Manifest | None) -> Overlap:
    """How much of a listing the current version has, whatever made its vectors."""
    if current is None:
        return Overlap(listed=0, rows=0, shared=0)
    comparison.set_base(store, current, is_reusable=False)
    return comparison.overlap()


def check_adoption(sentence: str | None, *, adopt: bool) -> None:
    """Logs that another job's catalog is taken over.

    Args:
        sentence: Why the run is of another job, of `other_job`; None when it is not.
        adopt: Whether it may take the catalog over.

    Raises:
        OtherJobError: When it may not.
    """
    if sentence is None:
        return
    if not adopt:
        raise OtherJobError(
            f"{sentence}: nothing was sent. Name another catalog, or take this one over with --adopt; "
            "a `job:` name in the job's file keeps its catalog whatever its sources are."
        )
    log_event("adopted", logging.WARNING, because=sentence)


def is_whole(
    store: Store,
    manifest: Manifest,
    index: IndexConfig,
    metadata_types: Mapping[str, str],
    prepare: PrepareConfig | None = None,
) -> bool:
    """Whether a version has all its files, and indexes, columns and settings as they are wanted now.

    On a local disk what readers open is read too: a night without changes must not call a damaged index well.
    """
    prefix = version_folder(manifest.version)
    if manifest.config.get("index") != index.model_dump(mode="json"):
        return False
    if manifest.metadata_types != dict(metadata_types):
        return False
    if prepare is not None and stored_prepare(manifest.config) != prepare:
        return False
    if any(store.size(f"{prefix}/{entry.name}") != entry.size_bytes for entry in manifest.files):
        return False
    opened = [manifest.file(name) for entry in manifest.indexes for name in entry.names]
    return not store.is_local or not any(check_file(store, manifest.version, entry) for entry in opened)
