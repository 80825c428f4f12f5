"""Settings that the launcher passes to the last steps of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...configs import CatalogConfig, EmbedConfig, GateConfig, IndexConfig
from ...index.versions.latest import Latest
from ...index.versions.layout import PREPARE_RULES
from ...index.versions.manifest import JobIdentity
from ..planning.changes import UnitChanges
from ..planning.plan import Plan
from ..workers.run_folder import RunFolder
from .imports import VectorFolder


@dataclass(frozen=True, kw_only=True)
class VersionSetup:
    """Settings for the last steps of a run. Part of the pipeline graph, so it contains no secrets."""

    run: RunFolder
    embed: EmbedConfig
    """The model and request settings, the limits of the run, and the prices."""
    index: IndexConfig
    gates: GateConfig
    metadata_types: Mapping[str, str]
    settings: Mapping[str, Any]
    """The config as it is written to the manifest."""
    plan: Plan
    """The plan without its units and reused groups, which are elements of the pipeline."""
    folder: VectorFolder | None = None
    """The folder of imported vectors; its row groups are elements of the pipeline."""
    model_fingerprint: str | None = None
    prepare_rules: int = PREPARE_RULES
    """Version of the rules by which the images of all rows were prepared or checked."""
    requests_spent: int = 0
    """Requests that the launcher sent."""
    latest: Latest | None
    """LATEST.json before the run wrote anything; publishing fails if it has changed since."""
    rows_before: Mapping[str, int] | None
    """Rows of the current version by kind; None when there is none, or its manifest is damaged."""
    compared: UnitChanges | None = None
    """The changes, if they are known before the vectors are read: those of the rows of a pipeline."""
    normalised: int = 0
    """Vectors of a pipeline whose norm was not 1."""
    may_stay: bool = False
    """Whether the current version stays if the run changes nothing in it: it is whole and made with these settings."""
    is_compared: bool = False
    """Whether the plan has the contents of the current version for the listed ids."""
    contents_known: bool = True
    """Whether the current version has the contents of its vectors; a version with imported vectors may lack them."""
    job: JobIdentity | None = None
    is_taken_over: bool = False
    """Whether the catalog belonged to another job, so that replacing its rows is intended."""
    software: str
    started_at_s: float
    """time.time() at the launch."""


def public_settings(config: CatalogConfig) -> dict[str, Any]:
    """Return the config for the manifest. A config has no credentials; storage options, which may, are removed."""
    settings = config.model_dump(mode="json")
    for name in ("max_requests", "max_cost", "max_retry_after_s", "retry_dead"):
        settings["embed"].pop(name)  # these apply to the run that wrote the version, not to searches in it
    for source in settings.get("sources", ()):
        source.pop("storage_options")
    return settings
