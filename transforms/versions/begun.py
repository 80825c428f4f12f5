"""Begin the version that a pipeline writes, before the first row is written."""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson

from ...configs import CatalogConfig, EmbedConfig, GateConfig, IndexConfig, PrepareConfig
from ...configs.errors import CatalogError, ConfigError, OtherJobError
from ...configs.load import parse_settings
from ...configs.schema import UNKNOWN_MODEL
from ...index.local.trust import Trust
from ...index.storage.store import Store
from ...index.versions.history import forget_unfinished, new_version, read_base
from ...index.versions.latest import Latest
from ...index.versions.layout import RUNS
from ...index.versions.manifest import Manifest, read_manifest
from ..planning.embedding_config import differences
from ..workers.run_folder import RunFolder

_BEGUN = "pipeline.json"

Mode = Literal["replace", "upsert"]


@dataclass(frozen=True, kw_only=True)
class PipelineSetup:
    """The arguments of a pipeline that writes a catalog. Part of the pipeline graph, so it contains no secrets."""

    url: str
    nonce: str
    """Names the pipeline in the lease and in its run folder."""
    mode: Mode
    embed: EmbedConfig | None
    """What made the vectors. None: unknown, or the same as in the current version."""
    prepare: PrepareConfig | None
    index: IndexConfig | None
    gates: GateConfig
    metadata: Mapping[str, str] | None
    job: str | None
    adopt: bool

    @property
    def store(self) -> Store:
        return Store(self.url)


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A version that a pipeline has begun to write."""

    run: RunFolder
    latest: Latest | None
    """LATEST.json at that time; publishing fails if it has changed since."""
    config: CatalogConfig
    dimension: int | None
    """Of the vectors; None: unknown until they are there."""
    metadata: Mapping[str, str]
    fingerprint: str | None
    """Of the emulator that made the vectors; None: the API itself, or unknown."""
    started_at_s: float


def begin(setup: PipelineSetup, fingerprint: str | None = None) -> Begun:
    """Begin a version, while the catalog is held. The same pipeline gets the same version again.

    Args:
        setup: The arguments of the pipeline.
        fingerprint: Of the emulator that makes the vectors, if one does.

    Raises:
        ConfigError: When the current version does not fit to the arguments.
        OtherJobError: When the catalog belongs to another job.
        CatalogError: When LATEST.json is missing or damaged.
        UnwritableError: When the catalog cannot be written.
    """
    store = setup.store
    run = RunFolder(url=store.url, version="")
    try:
        latest = read_base(store)
        current = None if latest is None else current_manifest(setup, latest)
        _check_name(setup, current)
        config = _config(setup, current)
        metadata = _metadata(setup, current)
        if setup.mode == "upsert" and current is not None:
            _check_same_model(setup, current, config, fingerprint)
            fingerprint = current.model_fingerprint
        run = replace(run, version=_version(store, setup.nonce, latest))
        store.write(run.name(_BEGUN), orjson.dumps({"nonce": setup.nonce}))
    except OSError as error:
        raise run.unwritable(error) from error
    if setup.embed is not None:
        Trust().remember_job(config, before=None if current is None else current.config)
    is_known = setup.embed is not None or (setup.mode == "upsert" and current is not None)
    return Begun(
        run=run,
        latest=latest,
        config=config,
        dimension=config.embed.dimension if is_known else None,
        metadata=metadata,
        fingerprint=fingerprint,
        started_at_s=time.time(),
    )


def current_manifest(setup: PipelineSetup, latest: Latest) -> Manifest | None:
    try:
        return read_manifest(setup.store, latest.version, latest.manifest_sha256)
    except CatalogError:
        if setup.mode == "upsert":
            raise
        return None  # its files cannot be trusted, and nothing of them is needed


def _version(store: Store, nonce: str, latest: Latest | None) -> str:
    """Return the version that the pipeline has begun before, or a new one. Clears what killed runs left behind."""
    for version in {name.split("/")[1] for name in store.names(RUNS)}:
        begun = RunFolder(url=store.url, version=version).name(_BEGUN)
        with contextlib.suppress(FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError):
            if orjson.loads(store.read(begun))["nonce"] == nonce and (latest is None or version > latest.version):
                return version
        forget_unfinished(store, version)
    return new_version(store, latest)


def _check_name(setup: PipelineSetup, current: Manifest | None) -> None:
    """Raise OtherJobError when the catalog belongs to a job of another name."""
    before = None if current is None else current.job
    if before is None or setup.adopt or None in {before.name, setup.job} or before.name == setup.job:
        return
    raise OtherJobError(
        f"{setup.url}: the catalog belongs to the job {before.name}, and this pipeline is the job {setup.job}. "
        "Name another catalog, or use this one with adopt=True."
    )


def _config(setup: PipelineSetup, current: Manifest | None) -> CatalogConfig:
    """Return the settings of the version. An upsert has those of the current version, unless others are given."""
    raw: dict[str, Any] = {"embed": {"model": UNKNOWN_MODEL}}
    if current is not None and setup.mode == "upsert":
        raw = {name: current.config[name] for name in ("embed", "prepare", "index", "job") if name in current.config}
    for name in ("embed", "prepare", "index", "gates"):
        section = getattr(setup, name)
        if section is not None:
            raw[name] = section.model_dump(mode="json")
    if setup.job is not None:
        raw["job"] = setup.job
    return parse_settings({**raw, "catalog": setup.url})


def _metadata(setup: PipelineSetup, current: Manifest | None) -> dict[str, str]:
    if current is None or setup.mode == "replace":
        return dict(sorted((setup.metadata or {}).items()))
    if setup.metadata is not None and dict(setup.metadata) != dict(current.metadata_types):
        raise ConfigError(
            f"WriteCatalog: metadata must be that of the catalog, {dict(current.metadata_types)}, with mode='upsert', "
            f"got {dict(setup.metadata)}. Omit it, or use mode='replace'."
        )
    return dict(current.metadata_types)


def _check_same_model(setup: PipelineSetup, current: Manifest, config: CatalogConfig, fingerprint: str | None) -> None:
    """Check that the new vectors can be compared with those that stay.

    Raises:
        ConfigError: When another model made them, or they would need more bits than the stored ones have.
    """
    found = differences(current, config, fingerprint if setup.embed else current.model_fingerprint)
    if found:
        raise ConfigError(
            f"WriteCatalog: mode='upsert' needs vectors like those of {setup.url}, but {'; '.join(found)}. "
            "Use mode='replace' with all assets."
        )
