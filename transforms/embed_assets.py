"""The transform that embeds the assets of any pipeline, bounded or not."""

import secrets
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import apache_beam as beam
import orjson
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import BoundedWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from ..configs import EmbedConfig, PrepareConfig
from ..configs.errors import ConfigError
from ..configs.schema import Dialect
from ..index.versions.layout import DeadLetter
from .elements import Asset, DeadAsset, EmbeddedAsset, EmbedResult, as_assets, check_elements
from .embedding.arguments import config_of, embed_config
from .embedding.assets import InlineReference
from .embedding.engine import AssetBundle, EmbeddedVector, Engine, EngineSetup, acquire_engine, release_engine
from .embedding.vector import Vector
from .epithre.rate_limit.memory_backend import WINDOW_S
from .fill_requests import ChooseKey, FillRequests
from .sources.references import UNKNOWN, Reference

_NAMESPACE = "epithre_beam"
_DEAD = "dead"
_scopes: "weakref.WeakKeyDictionary[beam.Pipeline, str]" = weakref.WeakKeyDictionary()


class EmbedAssets(beam.PTransform):  # type: ignore[misc]
    """Embed images and texts.

    Input: PCollection[Asset], bounded or not (also of `beam.Row` with its fields).
    Output: `EmbedResult(embedded, dead)`, PCollections of `EmbeddedAsset` and `DeadAsset`. Each asset is in one of the
    two, with its timestamp and window. After `with_error_handler` the output is `embedded` alone.

    Requests are filled over the elements of a bundle, and several are in flight. Of unbounded input they are filled
    over bundles too, within a window: an asset waits at most `max_buffering_s`, then for its request.

    A refused asset is dead alone, whatever request it was in. What no asset is to blame for (a refused key, a spent
    quota, an outage) fails the bundle with one sentence, and a bundle that the runner tries again sends again. At
    `max_requests` and `max_cost` the pipeline goes on: what was not sent is dead, with the reason `not_sent`.

    >>> import apache_beam as beam
    >>> from epithre_beam import transforms as epithre
    >>> with beam.Pipeline(runner="FnApiRunner") as pipeline:
    ...     result = (
    ...         pipeline
    ...         | beam.Create([epithre.Asset.of_text("p1", "a red mug"), epithre.Asset.of_text("p2", "")])
    ...         | epithre.EmbedAssets(base_url="emulator", dimension=64)
    ...     )
    ...     vectors = result.embedded | beam.Map(lambda asset: f"{asset.id}: {len(asset.embedding)} dimensions")
    ...     reasons = result.dead | beam.Map(lambda asset: f"{asset.id}: {asset.reason}")
    ...     everything = (vectors, reasons) | beam.Flatten() | beam.combiners.ToList()
    ...     _ = everything | beam.Map(lambda found: print(sorted(found)))
    ['p1: 64 dimensions', 'p2: empty_text']

    Args:
        base_url: The address of the API; `emulator` starts the local emulator in each worker process.
        model: The model.
        dimension: The dimension of its vectors.
        dialect: How the server is spoken to.
        api_key_env: The name of the environment variable with the key, on the workers.
        requests_per_minute: Never exceeded in any 60 s by all that share the rate limiter; None: learned.
        items_per_minute: The same for items.
        tokens_per_minute: The same for tokens.
        batch_items: Items in a request at most.
        max_concurrency: Requests of a process in flight at most. Of steps that share the rate limiter, the smallest
            maximum holds for all together.
        max_requests: All steps of the pipeline that share the rate limiter stop before they send more, retries
            included.
        rate_limiter: Who shares the counts of requests with the same key, address and limits: all threads and steps of
            this process (`memory`), of this host (`host`), or all that use a Redis (`redis`), each with its own limits.
        redis_url: `redis://HOST:PORT/DB`, without a password.
        redis_password_env: The name of the environment variable with Redis' password.
        embed: Other settings of the API, or all of them: the section `embed` of a job.
        prepare: How assets are prepared: the section `prepare` of a job.
        cache: A catalog, a folder that `WriteVectors` wrote, or a folder in which this transform kept vectors earlier:
            a path or an fsspec URL. Contents that it has of the same model, request and preparation are not sent. What
            is sent is kept there before it leaves the transform. After a kill, only what was not stored is sent again:
            at most `2 * max_concurrency` requests of each step and process.
        within: The folders that an asset's `uri` may point into; None: everywhere. Set it if uris come from strangers.
        storage_options: Options for fsspec. Credentials belong into the cloud's own chain.
        max_buffering_s: Seconds that an asset of unbounded input waits at most for others to share its request with.

    Raises:
        ConfigError: When a setting is wrong, or contradicts `embed`.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        model: str | None = None,
        dimension: int | None = None,
        dialect: Dialect | None = None,
        api_key_env: str | None = None,
        requests_per_minute: int | None = None,
        items_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        batch_items: int | None = None,
        max_concurrency: int | None = None,
        max_requests: int | None = None,
        rate_limiter: Literal["memory", "host", "redis"] | None = None,
        redis_url: str | None = None,
        redis_password_env: str | None = None,
        embed: EmbedConfig | Mapping[str, Any] | None = None,
        prepare: PrepareConfig | Mapping[str, Any] | None = None,
        cache: str | None = None,
        within: Sequence[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        max_buffering_s: float = 5.0,
    ) -> None:
        super().__init__()
        given = {
            "base_url": base_url,
            "model": model,
            "dimension": dimension,
            "dialect": dialect,
            "api_key_env": api_key_env,
            "requests_per_minute": requests_per_minute,
            "items_per_minute": items_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "batch_items": batch_items,
            "max_concurrency": max_concurrency,
            "max_requests": max_requests,
            "rate_limiter": rate_limiter,
            "redis_url": redis_url,
            "redis_password_env": redis_password_env,
        }
        self._embed = embed_config({name: value for name, value in given.items() if value is not None}, embed)
        self._prepare = config_of("prepare", PrepareConfig, prepare)
        self._cache = cache
        if cache is not None:
            try:
                self._embed.check_allows_probe()
            except ValueError as error:
                raise ConfigError(f"EmbedAssets: with `cache`, {error}.") from None
        self._within = None if within is None else tuple(within)
        self._storage_options = orjson.dumps(dict(storage_options or {}), option=orjson.OPT_SORT_KEYS).decode()
        if not max_buffering_s > 0:
            raise ConfigError(f"EmbedAssets: max_buffering_s must be greater than 0, got {max_buffering_s!r}.")
        self._max_buffering_s = max_buffering_s
        self._error_handler: Any = None
        self.engine_setup: EngineSetup | None = None
        """How it embeds, for steps that need to know; set when it is applied."""
        self._window_s = WINDOW_S
        self._clock = time.time

    def with_error_handler(self, error_handler: Any) -> "EmbedAssets":
        """Pass dead assets to one of Beam's error handlers; the output is the embedded assets alone.

        Args:
            error_handler: `apache_beam.transforms.error_handling.ErrorHandler`; None: `dead` is an output.
        """
        self._error_handler = error_handler
        return self

    def expand(self, assets: beam.PCollection) -> Any:
        check_elements(assets, Asset, "EmbedAssets")
        pipeline = assets.pipeline
        setup = EngineSetup(
            embed=self._embed,
            prepare=self._prepare,
            scope=_scopes.setdefault(pipeline, secrets.token_hex(6)),
            within=self._within,
            storage_options=self._storage_options,
            cache=self._cache,
            window_s=self._window_s,
        )
        self.engine_setup = setup
        assets = as_assets(assets, "EmbedAssets")
        is_dask = type(pipeline.runner).__name__ == "DaskRunner"
        if not assets.is_bounded:
            if is_dask:
                raise ConfigError("EmbedAssets: the DaskRunner cannot run a pipeline with unbounded input.")
            assets = assets | FillRequests(
                items=self._embed.items_per_request,
                size_bytes=self._embed.batch_bytes,
                max_buffering_s=self._max_buffering_s,
                clock=self._clock,
            )
        if is_dask:
            # Dask drops what leaves `finish_bundle`, so a bundle is made of a group, whose elements cross a shuffle.
            results = (
                assets
                | "ChooseGroup"
                >> beam.ParDo(ChooseKey(self._embed.items_per_request)).with_output_types(tuple[int, Asset])
                | "Group" >> beam.GroupByKey()
                | "EmbedGroup" >> beam.ParDo(_EmbedGroup(setup)).with_output_types(EmbeddedAsset | DeadAsset)
            )
            # Filters, not tags: Dask drops tagged outputs.
            embedded = results | "Embedded" >> beam.Filter(_is_embedded).with_output_types(EmbeddedAsset)
            dead = results | "Dead" >> beam.Filter(_is_dead).with_output_types(DeadAsset)
        else:
            embed = beam.ParDo(_EmbedBundle(setup)).with_output_types(EmbeddedAsset | DeadAsset)
            embedded, dead = assets | "Embed" >> embed.with_outputs(_DEAD, main="embedded")
            embedded.element_type, dead.element_type = EmbeddedAsset, DeadAsset
        if self._error_handler is not None:
            self._error_handler.add_error_pcollection(dead)
            return embedded
        return EmbedResult(embedded=embedded, dead=dead)

    def display_data(self) -> dict[str, Any]:
        """Return the settings that Beam's tools show."""
        embed = self._embed
        shown = {
            "base_url": embed.base_url,
            "model": embed.model,
            "dimension": embed.dimension,
            "requests_per_minute": embed.requests_per_minute,
            "items_per_minute": embed.items_per_minute,
            "tokens_per_minute": embed.tokens_per_minute,
            "batch_items": embed.batch_items,
            "max_requests": embed.max_requests,
            "rate_limiter": embed.rate_limiter,
            "cache": self._cache,
            "max_buffering_s": self._max_buffering_s,
        }
        return {name: value for name, value in shown.items() if value is not None}


def _is_embedded(result: EmbeddedAsset | DeadAsset) -> bool:
    return hasattr(result, "embedding")


def _is_dead(result: EmbeddedAsset | DeadAsset) -> bool:
    return not hasattr(result, "embedding")


class _Embedding(beam.DoFn):  # type: ignore[misc]
    """A DoFn with an engine. Updates metrics on its own thread only: Beam loses updates from other threads."""

    def __init__(self, setup: EngineSetup) -> None:
        self._setup = setup
        self._engine: Engine | None = None
        self._counts: Counter[str] = Counter()

    def teardown(self) -> None:
        if self._engine is not None:
            release_engine(self._engine)
            self._engine = None

    def _bundle(self) -> "AssetBundle[Any]":
        if self._engine is None:  # not in `setup`: a wrong key must fail a bundle, with its sentence
            self._engine = acquire_engine(self._setup)
        return AssetBundle(self._engine)

    def _add(self, bundle: "AssetBundle[Any]", asset: Asset, tag: Any) -> Iterator[tuple[Any, Any]]:
        return bundle.add(reference_of(asset, bundle.engine), tag)

    def _element(self, asset: Asset, result: EmbeddedVector | DeadLetter) -> EmbeddedAsset | DeadAsset:
        self._counts["vectors" if isinstance(result, EmbeddedVector) else "dead_letters"] += 1
        if isinstance(result, EmbeddedVector) and result.origin != "sent":
            self._counts[f"vectors_{result.origin}"] += 1
        return element_of(asset, result, None if self._engine is None else self._engine.made_by)

    def _report(self) -> None:
        """Add the counts since the last call to Beam's metrics: one update for each element would take long."""
        if self._engine is not None:
            self._counts.update(self._engine.counts())
        for name, count in self._counts.items():
            if count:
                Metrics.counter(_NAMESPACE, name).inc(count)
        self._counts.clear()


class _EmbedBundle(_Embedding):
    """Embed the elements of a bundle; results leave with the timestamps and windows of their assets.

    They are `WindowedValue`s, of dead assets in a `TaggedOutput`. Beam warns if the annotations say so.
    """

    def __init__(self, setup: EngineSetup) -> None:
        super().__init__(setup)
        self._current: AssetBundle[tuple[Asset, Timestamp, BoundedWindow]] | None = None

    def start_bundle(self) -> None:
        self._current = None
        self._counts.clear()

    def process(
        self, asset: Asset, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        if self._current is None:
            self._current = self._bundle()
        for tag, result in self._add(self._current, asset, (asset, timestamp, window)):
            yield self._windowed(tag, result)

    def finish_bundle(self) -> Iterator[Any]:
        if self._current is not None:
            for tag, result in self._current.finish():
                yield self._windowed(tag, result)
            self._current = None
        self._report()

    def _windowed(self, tag: tuple[Asset, Timestamp, BoundedWindow], result: EmbeddedVector | DeadLetter) -> Any:
        asset, timestamp, window = tag
        element = WindowedValue(self._element(asset, result), timestamp, (window,))
        return element if isinstance(result, EmbeddedVector) else beam.pvalue.TaggedOutput(_DEAD, element)


class _EmbedGroup(_Embedding):
    """Embed the elements of a group as one bundle, for runners that drop what leaves `finish_bundle`."""

    def process(self, group: tuple[int, Iterable[Asset]]) -> Iterator[EmbeddedAsset | DeadAsset]:
        bundle = self._bundle()
        for asset in group[1]:
            for its, result in self._add(bundle, asset, asset):
                yield self._element(its, result)
        for its, result in bundle.finish():
            yield self._element(its, result)
        self._report()


def reference_of(asset: Asset, engine: Engine) -> Reference:
    """Return what the engine needs to know of an asset."""
    size = asset.size_bytes
    if asset.text is not None:
        size = len(asset.text.encode("utf-8", "surrogatepass"))
    reference = Reference(
        asset_id=asset.id,
        kind=asset.kind,
        uri=asset.uri,
        text=asset.text,
        fingerprint=asset.fingerprint or UNKNOWN,
        size_bytes=size if asset.content is None else len(asset.content),
        source=engine.reader.position_of(asset.source),
    )
    return reference if asset.content is None else InlineReference(**vars(reference), content=asset.content)


def element_of(
    asset: Asset, result: EmbeddedVector | DeadLetter, made_by: str | None = None
) -> EmbeddedAsset | DeadAsset:
    """Return the output element of an asset.

    `made_by` is in each element, because steps between `EmbedAssets` and a sink may join the output of several models.
    """
    if isinstance(result, DeadLetter):
        return DeadAsset(
            id=asset.id,
            kind=asset.kind,
            uri=asset.uri,
            stage=result.stage,
            reason=result.reason.value,
            detail=result.detail,
            attempts=result.attempts,
        )
    facts = result.facts
    return EmbeddedAsset(
        id=asset.id,
        kind=asset.kind,
        uri=asset.uri,
        text=facts.text,
        content_sha256=facts.content_sha256,
        fingerprint=asset.fingerprint,
        media_type=facts.media_type,
        size_bytes=facts.size_bytes,
        width=facts.width,
        height=facts.height,
        prepared=facts.prepared,
        metadata=asset.metadata,
        embedding=Vector(result.vector, is_own=True),  # type: ignore[arg-type]  # numpy's type names FLOAT in the schema
        made_by=made_by,
    )
