"""The transform that writes embedded assets as a new version of a catalog."""

import os
import secrets
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import apache_beam as beam
from apache_beam.pvalue import AsSingleton
from apache_beam.transforms.display import DisplayDataItem
from pydantic import TypeAdapter, ValidationError

from ..configs import EmbedConfig, GateConfig, IndexConfig, MetadataType, PrepareConfig
from ..configs.errors import ArgumentError, ConfigError
from ..configs.load import anchored
from ..configs.schema import Location, check_metadata_name
from .catalog_elements import CatalogOutcome, CatalogResult
from .elements import DeadAsset, EmbeddedAsset, check_elements
from .embed_assets import EmbedAssets
from .embedding.arguments import config_of
from .embedding.engine import EngineSetup
from .plan_catalog import PlanCatalog, clear, finish, held, is_a, is_group
from .versions.begun import Mode, PipelineSetup
from .versions.setup import VersionSetup
from .write_version import WriteVersion


class WriteCatalog(beam.PTransform):  # type: ignore[misc]
    """Write embedded assets as a new version of a catalog, and publish it if it passes the gates.

    Input: a bounded PCollection of `EmbeddedAsset`, or of `beam.Row` with `id`, `kind`, `embedding` and any of its
    other fields, in any windows. Output: `CatalogResult(outcome, dead)`, PCollections of `CatalogOutcome` (one element)
    and of `DeadAsset` (assets whose vectors have the wrong dimension, are zero or not finite).

    The catalog is held from the start of the pipeline, as by a job: if a job or another pipeline holds it, this one
    stops before it embeds anything. Readers see the version before or the new one, whenever the pipeline is killed.
    Vectors are written once where they are and do not cross a shuffle. An id that comes in twice within its kind stops
    the pipeline with the id. Whatever Beam repeats, one version is published.

    Args:
        catalog: A path or fsspec URL. A relative path starts at the working folder of the program that builds the
            pipeline.
        mode: `replace`: the assets of this pipeline are all that the version has. `upsert`: assets that do not come in
            stay as they are, with their vectors.
        delete: PCollection of ids (str) or (kind, id) that go, with `upsert`. An id that also comes in stays.
        dead: PCollection of `DeadAsset`, such as `result.dead` of `EmbedAssets`. They are stored in the version, count
            for the gate `max_dead_share`, and replace the rows of their ids.
        index: Settings of the indexes: the section `index` of a job. With `upsert`, those of the current version.
        gates: When a version is held instead of published: the section `gates` of a job.
        metadata: Names of metadata values to keep, with their types (`string`, `int`, `double`, `bool`, `date`,
            `timestamp`). With `upsert`, those of the current version.
        embed: The section `embed` of a job: the model that made the vectors, for searches with texts and images.
            Needed only if there is no `EmbedAssets` before it, whose settings are used otherwise.
        prepare: The section `prepare` of a job; as for `embed`.
        job: The name of the job that the catalog belongs to; another job does not replace it.
        adopt: Replace the catalog even if it belongs to another job.
        fail_if_held: Raise an error if a gate holds the version. It is an outcome otherwise.

    Raises:
        ConfigError: When an argument is wrong. While the pipeline runs: when vectors of `upsert` are not those of the
            catalog's model.
        ArgumentError: When the input is unbounded or has other elements, or the runner cannot run it. While the
            pipeline runs: when vectors have different dimensions, and none is known.
        CatalogBusyError: While the pipeline runs, when a job or another pipeline holds the catalog.
        OtherJobError: While the pipeline runs, when the catalog belongs to another job.
        SourceError: While the pipeline runs, when an id is not unique within its kind.
        GateError: While the pipeline runs, with `fail_if_held`.

    >>> import tempfile
    >>> import apache_beam as beam
    >>> from epithre_beam import transforms as epithre
    >>> with beam.Pipeline(runner="FnApiRunner") as p:
    ...     rows = p | beam.Create([beam.Row(id="p1", kind="text", text="mug", embedding=[0.5] * 16)])
    ...     result = rows | epithre.WriteCatalog(tempfile.mkdtemp())
    ...     _ = result.outcome | beam.Map(lambda outcome: print(outcome.is_published, outcome.embedded))
    True 1
    """

    def __init__(
        self,
        catalog: str | os.PathLike[str],
        *,
        mode: Literal["replace", "upsert"] = "replace",
        delete: beam.PCollection | None = None,
        dead: beam.PCollection[DeadAsset] | None = None,
        index: IndexConfig | Mapping[str, Any] | None = None,
        gates: GateConfig | Mapping[str, Any] | None = None,
        metadata: Mapping[str, MetadataType] | None = None,
        embed: EmbedConfig | Mapping[str, Any] | None = None,
        prepare: PrepareConfig | Mapping[str, Any] | None = None,
        job: str | None = None,
        adopt: bool = False,
        fail_if_held: bool = False,
    ) -> None:
        super().__init__()
        if mode not in {"replace", "upsert"}:
            raise ConfigError(f"WriteCatalog: mode must be 'replace' or 'upsert', got {mode!r:.80}.")
        if delete is not None and mode != "upsert":
            raise ConfigError("WriteCatalog: delete needs mode='upsert'. With 'replace', other ids are gone anyway.")
        self._url = _catalog(catalog)
        self._mode: Mode = mode
        self._delete = delete
        self._dead = dead
        self._index = None if index is None else config_of("index", IndexConfig, index, "WriteCatalog")
        self._gates = config_of("gates", GateConfig, gates, "WriteCatalog")
        self._metadata = None if metadata is None else _metadata(metadata)
        self._embed = None if embed is None else config_of("embed", EmbedConfig, embed, "WriteCatalog")
        self._prepare = None if prepare is None else config_of("prepare", PrepareConfig, prepare, "WriteCatalog")
        self._job = job
        self._adopt = adopt
        self._fail_if_held = fail_if_held

    def expand(self, embedded: beam.PCollection) -> Any:
        self._check(embedded)
        engine = None if self._embed is not None else made_by(embedded)
        setup = PipelineSetup(
            url=self._url,
            nonce=secrets.token_hex(16),
            mode=self._mode,
            embed=self._embed or (None if engine is None else engine.embed),
            prepare=self._prepare or (None if engine is None else engine.prepare),
            index=self._index,
            gates=self._gates,
            metadata=self._metadata,
            job=self._job,
            adopt=self._adopt,
        )
        planned, invalid = embedded | PlanCatalog(setup=setup, engine=engine, dead=self._dead, delete=self._delete)
        version_setup = AsSingleton(planned | "Setup" >> beam.Filter(is_a, VersionSetup))
        outcomes = (
            planned
            | "Groups" >> beam.Filter(is_group)
            | "WriteVersion" >> WriteVersion(setup=version_setup, within=partial(held, setup.nonce))
            | "Finish" >> beam.Map(finish, setup, self._fail_if_held).with_output_types(CatalogOutcome)
        )
        nothing = (
            planned
            | "NothingToDo" >> beam.Filter(is_a, CatalogOutcome).with_output_types(CatalogOutcome)
            | "AfterPlan" >> beam.Reshuffle()
            | "Clear" >> beam.Map(clear, setup).with_output_types(CatalogOutcome)
        )
        return CatalogResult(
            outcome=(outcomes, nothing) | "Outcome" >> beam.Flatten(),
            dead=invalid,
        )

    def _check(self, embedded: Any) -> None:
        check_elements(embedded, EmbeddedAsset, self.label)
        if self._dead is not None:
            check_elements(self._dead, DeadAsset, f"{self.label}: dead")
        if self._delete is not None and not isinstance(self._delete, beam.PCollection):
            raise ArgumentError(
                f"{self.label}: delete takes a PCollection, got {type(self._delete).__name__}. Wrap ids in beam.Create."
            )
        for elements in (embedded, self._dead, self._delete):
            if elements is not None and not elements.is_bounded:
                raise ArgumentError(
                    f"{self.label} takes bounded PCollections, got an unbounded one: it could not tell when the "
                    "version is complete. Write what came in every hour or night with mode='upsert'."
                )
        if type(embedded.pipeline.runner).__name__ == "DaskRunner":
            raise ArgumentError(f"{self.label} does not run on Dask, which loses what a bundle returns at its end.")

    def display_data(self) -> dict[str, Any]:
        return {
            "catalog": DisplayDataItem(self._url, label="Catalog"),
            "mode": DisplayDataItem(self._mode, label="Mode"),
            "metadata": DisplayDataItem(", ".join(self._metadata or ()), label="Metadata"),
        }


def made_by(embedded: beam.PCollection) -> EngineSetup | None:
    """Return the settings of the `EmbedAssets` that the elements come from; None if there is none.

    Raises:
        ConfigError: When there are several with different models.
    """
    found: list[EngineSetup] = []
    todo, done = [embedded], set()
    while todo:
        elements = todo.pop()
        producer = getattr(elements, "producer", None)
        if producer is None or id(elements) in done:
            continue
        done.add(id(elements))
        above = producer
        while above is not None and not isinstance(above.transform, EmbedAssets):
            above = above.parent
        if above is None:
            todo += producer.inputs
        elif (setup := above.transform.engine_setup) is not None:
            found.append(setup)
    models = {(setup.embed.model, setup.embed.dimension, setup.embed.base_url) for setup in found}
    if len(models) > 1:
        raise ConfigError(
            "WriteCatalog: the assets come from several EmbedAssets with different models or addresses "
            f"({', '.join(sorted(f'{model} at {url}' for model, _, url in models))}). A catalog has one model; "
            "set `embed` if they are the same."
        )
    return found[0] if found else None


def _catalog(catalog: str | os.PathLike[str]) -> str:
    try:
        url = TypeAdapter(Location).validate_python(os.fspath(catalog))
    except (ValidationError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(f"WriteCatalog: catalog must be a path or URL without a password ({reason}).") from None
    return anchored(url, Path.cwd())


def _metadata(types: Mapping[str, str]) -> dict[str, str]:
    for name, kind in types.items():
        try:
            TypeAdapter(MetadataType).validate_python(kind)
            check_metadata_name(name)
        except (ValidationError, ValueError, TypeError):
            raise ConfigError(
                "WriteCatalog: metadata must map names of columns to types such as 'string', "
                f"got {name!r:.80}: {kind!r:.80}."
            ) from None
    return dict(sorted(types.items()))
