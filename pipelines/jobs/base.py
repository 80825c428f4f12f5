"""The base of a run: the listed references, and the current version if its vectors can be reused."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...configs import CatalogConfig, IndexConfig, PrepareConfig, SourceConfig
from ...configs.errors import CatalogError, EmulatorError, OtherJobError
from ...configs.schema import EMULATOR, is_loopback, stored_prepare
from ...index.storage.store import Store
from ...index.versions.files import check_file
from ...index.versions.latest import Latest
from ...index.versions.layout import version_folder
from ...index.versions.manifest import Manifest, read_manifest
from ...transforms.epithre.emulator import EmulatorSettings, emulator_fingerprint
from ...transforms.planning.compare import Comparison, Overlap
from ...transforms.planning.embedding_config import differences
from ...transforms.planning.plan import iterate_references
from ..console.logs import log_event


@dataclass(frozen=True, kw_only=True)
class Base:
    """The current version, as a run sees it."""

    manifest: Manifest | None
    """None when nothing is published, or the manifest is damaged."""
    reasons: tuple[str, ...]
    """Why its vectors cannot be reused; empty when they can."""
    fingerprint: str | None
    """Fingerprint of the model that embeds this run; None when it is unknown."""
    is_certain: bool
    """Whether the model is known without a request to the server."""

    @property
    def usable(self) -> Manifest | None:
        return None if self.reasons else self.manifest


@contextlib.contextmanager
def compare(
    sources: Sequence[SourceConfig], metadata_types: Mapping[str, str], label: str = "sources"
) -> Iterator[Comparison]:
    """List all sources, for comparison with a version.

    Args:
        sources: The job's sources.
        metadata_types: Type of each metadata column, for all sources.
        label: Key of the sources in the job file, for errors.

    Raises:
        ConfigError: When a source matches no file or lacks a column.
        SourceError: When a source cannot be read, or two assets of a kind share an id.
    """
    with Comparison(metadata_types) as comparison:
        for table in iterate_references(sources, metadata_types, label, comparison.passed_over):
            comparison.add_references(table)
        comparison.check_ids(sources, label)
        yield comparison


_NOT_ASKED = "not asked"


def find_base(config: CatalogConfig, store: Store, latest: Latest | None, fingerprint: str | None = _NOT_ASKED) -> Base:
    """Find the current version and decide whether its vectors can be reused.

    Args:
        config: The run's configuration.
        store: The catalog.
        latest: LATEST.json; None when nothing is published.
        fingerprint: Model fingerprint that the server reported. Without it, the fingerprint of the current version
            is assumed if `embed.base_url` is the same; the fingerprint of the built-in emulator is always known.
    """
    manifest = None
    reasons: tuple[str, ...] = ()
    if latest is not None:
        try:
            manifest = read_manifest(store, latest.version, latest.manifest_sha256)
        except CatalogError as error:  # its files cannot be trusted, so the run reads everything again
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
            reasons += (f"the vectors were made by {manifest.model_fingerprint}, not by {config.embed.base_url}",)
    return Base(manifest=manifest, reasons=reasons, fingerprint=fingerprint, is_certain=is_certain)


def overlap(comparison: Comparison, store: Store, current: Manifest | None) -> Overlap:
    """Count the listed assets that the current version also has, whichever model made its vectors."""
    if current is None:
        return Overlap(listed=0, rows=0, shared=0)
    comparison.set_base(store, current, is_reusable=False)
    return comparison.overlap()


def check_adoption(sentence: str | None, *, adopt: bool) -> None:
    """Check whether a run may adopt the catalog of another job, and log it if so.

    Args:
        sentence: Why the catalog belongs to another job, from `other_job`; None when it does not.
        adopt: Whether the run may adopt the catalog.

    Raises:
        OtherJobError: When the catalog belongs to another job and `adopt` is false.
    """
    if sentence is None:
        return
    if not adopt:
        raise OtherJobError(
            f"{sentence}: nothing was sent. Name another catalog, or use this one with --adopt. "
            "Set `job:` in the job file to keep the catalog when the sources change."
        )
    log_event("adopted", logging.WARNING, because=sentence)


def replaces_api(config: CatalogConfig, found: Base) -> str | None:
    """Return, in a clause, that an emulator would replace vectors of the API; None if that is not so."""
    if found.manifest is None or found.manifest.model_fingerprint is not None or found.fingerprint is None:
        return None
    return (
        f"{config.catalog}: the API made the vectors of the current version {found.manifest.version}, and the run "
        f"would replace all of them with vectors of an emulator (embed.base_url {config.embed.base_url})"
    )


def check_emulator(config: CatalogConfig, found: Base, *, adopt: bool) -> None:
    """Check that no emulator replaces vectors of the API.

    Raises:
        EmulatorError: When one would, and `adopt` is false.
    """
    if not adopt and (sentence := replaces_api(config, found)) is not None:
        raise EmulatorError(
            f"{sentence}: nothing was sent. Name another catalog, such as `--set catalog=trial`, or replace the "
            "vectors with --adopt."
        )


def is_whole(
    store: Store,
    manifest: Manifest,
    index: IndexConfig,
    metadata_types: Mapping[str, str],
    prepare: PrepareConfig | None = None,
) -> bool:
    """Return whether a version has all its files, and the indexes, columns and settings that the job asks for.

    On a local disk the index files are also read, so that a run without changes detects a damaged index.
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
