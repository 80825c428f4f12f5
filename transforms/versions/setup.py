"""What the last steps of a run are told by its launcher."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...configs import CatalogConfig, EmbedConfig, GateConfig, IndexConfig
from ...index.versions.latest import Latest
from ...index.versions.layout import PREPARE_RULES
from ...index.versions.manifest import JobIdentity
from ..planning.plan import Plan
from ..workers.run_folder import RunFolder
from .imports import VectorFolder


@dataclass(frozen=True, kw_only=True)
class VersionSetup:
    """What the last steps of a run need to know. Travels through the graph, so it holds no secret."""

    run: RunFolder
    embed: EmbedConfig
    """With what made the vectors, what limits the run, and the prices."""
    index: IndexConfig
    gates: GateConfig
    metadata_types: Mapping[str, str]
    settings: Mapping[str, Any]
    """The config as it goes into the manifest."""
    plan: Plan
    """Without its units and carried groups: those are elements of the pipeline."""
    folder: VectorFolder | None = None
    """Where vectors from elsewhere are; their groups are elements of the pipeline."""
    model_fingerprint: str | None = None
    prepare_rules: int = PREPARE_RULES
    """By which the rows' pictures were prepared, or looked at."""
    requests_spent: int = 0
    """Requests of the launcher itself."""
    latest: Latest | None
    """LATEST.json as it stood before the run wrote anything: it is swapped against this."""
    rows_before: Mapping[str, int] | None
    """By kind, of the version in force; None when there is none, or its manifest is damaged."""
    is_compared: bool = False
    """Whether the plan says what the current version has under the ids that are listed."""
    contents_known: bool = True
    """Whether the current version says what its vectors were made of: of vectors from elsewhere it may not."""
    job: JobIdentity | None = None
    is_taken_over: bool = False
    """Whether the catalog was another job's, so that its rows are meant to be replaced."""
    software: str
    started_at_s: float
    """time.time() at the launch."""


def public_settings(config: CatalogConfig) -> dict[str, Any]:
    """The config as it goes into the manifest: no credential stands in a config, and storage options stay out too."""
    settings = config.model_dump(mode="json")
    for name in ("max_requests", "max_cost", "max_retry_after_s", "retry_dead"):
        settings["embed"].pop(name)  # of the run that wrote the version, not of the searches in it
    for source in settings.get("sources", ()):
        source.pop("storage_options")
    return settings
