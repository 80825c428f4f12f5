"""The transform that asks a vision chat model about the assets and rows of any pipeline, bounded or not."""

import secrets
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
from pydantic import BaseModel

from ..configs import PrepareConfig
from ..configs.chat_schema import ChatConfig
from ..configs.errors import ArgumentError, ConfigError
from .chat.engine import ChatBundle, ChatEngine, ChatSetup, acquire_engine, release_engine, schema_of
from .chat.prompt import PromptTemplate
from .chat.rows import Answer, DeadRow, Row
from .chat_elements import ChatAnswer, ChatResult, ChatRow, DeadChatRow
from .elements import Asset, to_asset
from .embedding.arguments import config_of
from .embedding.assets import InlineReference
from .epithre.rate_limit.memory_backend import WINDOW_S
from .fill_requests import ChooseKey
from .sources.references import UNKNOWN, Reference

_NAMESPACE = "epithre_beam"
_DEAD = "dead"
_GROUP = 64
_scopes: "weakref.WeakKeyDictionary[beam.Pipeline, str]" = weakref.WeakKeyDictionary()


class ChatAssets(beam.PTransform):  # type: ignore[misc]
    """Ask a chat model about images and rows.

    Input: PCollection[ChatRow] or PCollection[Asset], bounded or not. An asset's fields are `id`, `kind`, `uri`, `text`
    and its metadata; an image is sent with the prompt.
    Output: `ChatResult(answered, dead)`, PCollections of `ChatAnswer` and `DeadChatRow`. Each row is in one of the two,
    with its timestamp and window. After `with_error_handler` the output is `answered` alone.

    A row that fails is dead alone: a template that fails for it, an image that cannot be read, an answer that is cut,
    refused, or not of the schema. What no row is to blame for (a refused key, a spent quota, an outage) fails the
    bundle with one sentence, and a bundle that the runner tries again sends again. At `max_requests` and `max_cost` the
    pipeline goes on: what was not sent is dead, with the reason `not_sent`.

    Requests and tokens count in the rate limiter. `max_tokens` counts until the answer says how many were used.

    Args:
        prompt: The template (Jinja2) of the text that is sent with the images of a row, over its fields.
        system: The system message.
        model: The model.
        answer_schema: The form of the answers: a JSON Schema, the path of a file with one, a pydantic model, or its
            import path (`package.module:Model`). Its fields are in `ChatAnswer.parsed`.
        base_url: The address of the API; `emulator` starts the local emulator in each worker process.
        api_key_env: The name of the environment variable with the key, on the workers.
        temperature: The temperature.
        max_tokens: The longest answer.
        seed: The seed.
        requests_per_minute: Never exceeded in any 60 s by all that share the rate limiter; None: learned.
        tokens_per_minute: The same for input and output tokens.
        max_concurrency: Requests of a process in flight at most.
        max_requests: All steps of the pipeline that share the rate limiter stop before they send more, retries
            included.
        max_cost: The same for the cost at the configured prices.
        rate_limiter: Who shares the counts of requests with the same key, address and limits: all threads and steps of
            this process (`memory`), of this host (`host`), or all that use a Redis (`redis`), each with its own limits.
        redis_url: `redis://HOST:PORT/DB`, without a password.
        redis_password_env: The name of the environment variable with Redis' password.
        chat: Other settings of the API, or all of them: the section `chat` of a job.
        prepare: How images are prepared: the section `prepare` of a job.
        cache: A folder in which answers are kept before they leave the transform: a path or an fsspec URL. Requests
            that it has an answer for are not sent: after a kill or with other rows, only what has no answer yet is
            asked, and equal requests are asked once.
        within: The folders that uris may point into; None: everywhere. Set it if uris come from strangers.
        storage_options: Options for fsspec. Credentials belong into the cloud's own chain.

    Raises:
        ConfigError: When a setting is wrong, or contradicts `chat`.
    """

    def __init__(
        self,
        prompt: str | None = None,
        *,
        system: str | None = None,
        model: str | None = None,
        answer_schema: Mapping[str, Any] | str | type[BaseModel] | None = None,
        base_url: str | None = None,
        api_key_env: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_concurrency: int | None = None,
        max_requests: int | None = None,
        max_cost: float | None = None,
        rate_limiter: Literal["memory", "host", "redis"] | None = None,
        redis_url: str | None = None,
        redis_password_env: str | None = None,
        chat: ChatConfig | Mapping[str, Any] | None = None,
        prepare: PrepareConfig | Mapping[str, Any] | None = None,
        cache: str | None = None,
        within: Sequence[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(answer_schema, type):
            answer_schema = _import_path(answer_schema)
        given = {
            "prompt": prompt,
            "system": system,
            "model": model,
            "answer_schema": answer_schema,
            "base_url": base_url,
            "api_key_env": api_key_env,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "max_concurrency": max_concurrency,
            "max_requests": max_requests,
            "max_cost": max_cost,
            "rate_limiter": rate_limiter,
            "redis_url": redis_url,
            "redis_password_env": redis_password_env,
        }
        self._chat = config_of(
            "chat", ChatConfig, chat, "ChatAssets", {n: v for n, v in given.items() if v is not None}
        )
        self._prepare = config_of("prepare", PrepareConfig, prepare, "ChatAssets")
        self._template = PromptTemplate(self._chat.prompt, name="ChatAssets: prompt")
        self._schema = schema_of(self._chat)
        self._cache = cache
        self._within = None if within is None else tuple(within)
        self._storage_options = orjson.dumps(dict(storage_options or {}), option=orjson.OPT_SORT_KEYS).decode()
        self._error_handler: Any = None
        self._window_s = WINDOW_S

    def with_error_handler(self, error_handler: Any) -> "ChatAssets":
        """Pass dead rows to one of Beam's error handlers; the output is the answered rows alone.

        Args:
            error_handler: `apache_beam.transforms.error_handling.ErrorHandler`; None: `dead` is an output.
        """
        self._error_handler = error_handler
        return self

    def expand(self, rows: beam.PCollection) -> Any:
        if not isinstance(rows, beam.PCollection):
            raise ArgumentError(f"ChatAssets takes a PCollection of ChatRow or Asset, got {type(rows).__name__}.")
        pipeline = rows.pipeline
        setup = ChatSetup(
            chat_json=self._chat.model_dump_json(exclude_unset=True),
            prepare=self._prepare,
            scope=_scopes.setdefault(pipeline, secrets.token_hex(6)),
            within=self._within,
            storage_options=self._storage_options,
            cache=self._cache,
            window_s=self._window_s,
        )
        rows = rows | "ToRows" >> beam.Map(to_row).with_output_types(ChatRow)
        if type(pipeline.runner).__name__ == "DaskRunner":
            # Dask drops what leaves `finish_bundle` and tagged outputs, so a bundle is made of a group.
            results = (
                rows
                | "ChooseGroup" >> beam.ParDo(ChooseKey(_GROUP)).with_output_types(tuple[int, ChatRow])
                | "Group" >> beam.GroupByKey()
                | "AskGroup" >> beam.ParDo(_AskGroup(setup)).with_output_types(ChatAnswer | DeadChatRow)
            )
            answered = results | "Answered" >> beam.Filter(_is_answered).with_output_types(ChatAnswer)
            dead = results | "Dead" >> beam.Filter(_is_dead).with_output_types(DeadChatRow)
        else:
            ask = beam.ParDo(_AskBundle(setup)).with_output_types(ChatAnswer | DeadChatRow)
            answered, dead = rows | "Ask" >> ask.with_outputs(_DEAD, main="answered")
            answered.element_type, dead.element_type = ChatAnswer, DeadChatRow
        if self._error_handler is not None:
            self._error_handler.add_error_pcollection(dead)
            return answered
        return ChatResult(answered=answered, dead=dead)

    def display_data(self) -> dict[str, Any]:
        """Return the settings that Beam's tools show."""
        chat = self._chat
        names = ("base_url", "model", "max_tokens", "requests_per_minute", "tokens_per_minute", "max_requests")
        shown: dict[str, Any] = {name: getattr(chat, name) for name in (*names, "max_cost", "rate_limiter")}
        return {name: value for name, value in shown.items() if value is not None}


def _import_path(model: type) -> str:
    """Return by which path workers import a pydantic model."""
    path = f"{model.__module__}:{model.__qualname__}"
    if not issubclass(model, BaseModel) or model.__module__ == "__main__" or "<locals>" in path:
        raise ConfigError(
            f"ChatAssets: answer_schema must be a pydantic model that workers can import, got {path}. Move it into a "
            "module, or pass its `model_json_schema()`."
        )
    return path


def to_row(element: Any) -> ChatRow:
    """Convert a `ChatRow`, an `Asset`, an `EmbeddedAsset`, or a `beam.Row` or named tuple with the fields of one.

    Raises:
        ArgumentError: When the element is something else, or wrong.
    """
    if isinstance(element, ChatRow):
        return element
    names = getattr(element, "_fields", None) or (element.as_dict() if isinstance(element, beam.Row) else ())
    if {"id", "fields"} <= set(names):  # as some runners pass it on
        return ChatRow(**{name: getattr(element, name) for name in ChatRow._fields if name in names})
    if not {"id", "kind"} <= set(names):
        raise ArgumentError(
            f"An element must be a ChatRow or an Asset, got {type(element).__name__}. Create it with ChatRow.of."
        )
    if "embedding" in names:  # its text is known, wherever it was read
        is_text = element.kind == "text"
        element = Asset(
            id=element.id,
            kind=element.kind,
            uri=None if is_text else element.uri,
            text=element.text if is_text else None,
            metadata=element.metadata,
        )
    asset = to_asset(element)
    metadata = orjson.loads(asset.metadata) if asset.metadata else {}
    fields = {**metadata, "id": asset.id, "kind": asset.kind, "uri": asset.uri, "text": asset.text}
    is_image = asset.kind == "image"
    return ChatRow(
        id=asset.id,
        fields=orjson.dumps(fields, option=orjson.OPT_SORT_KEYS).decode(),
        images=[asset.content] if is_image and asset.content is not None else None,
        uris=[asset.uri] if is_image and asset.uri is not None else None,
        source=asset.source,
    )


def _is_answered(result: ChatAnswer | DeadChatRow) -> bool:
    return hasattr(result, "request_sha256")


def _is_dead(result: ChatAnswer | DeadChatRow) -> bool:
    return not hasattr(result, "request_sha256")


class _Asking(beam.DoFn):  # type: ignore[misc]
    """A DoFn with an engine. Updates metrics on its own thread only: Beam loses updates from other threads."""

    def __init__(self, setup: ChatSetup) -> None:
        self._setup = setup
        self._engine: ChatEngine | None = None
        self._counts: Counter[str] = Counter()

    def teardown(self) -> None:
        if self._engine is not None:
            release_engine(self._engine)
            self._engine = None

    def _bundle(self) -> "ChatBundle[Any]":
        if self._engine is None:  # not in `setup`: a wrong key must fail a bundle, with its sentence
            self._engine = acquire_engine(self._setup)
        return ChatBundle(self._engine)

    def _element(self, row: ChatRow, result: Answer | DeadRow) -> ChatAnswer | DeadChatRow:
        self._counts["answers" if isinstance(result, Answer) else "dead_rows"] += 1
        if isinstance(result, Answer):
            self._counts["input_tokens"] += result.input_tokens
            self._counts["output_tokens"] += result.output_tokens
            self._counts["answers_reused"] += result.requests == 0
        return element_of(row.id, result)

    def _report(self) -> None:
        """Add the counts since the last call to Beam's metrics: one update for each element would take long."""
        if self._engine is not None:
            self._counts.update(self._engine.counts())
        for name, count in self._counts.items():
            if count:
                Metrics.counter(_NAMESPACE, name).inc(count)
        self._counts.clear()


class _AskBundle(_Asking):
    """Ask about the rows of a bundle; answers leave with the timestamps and windows of their rows.

    They are `WindowedValue`s, of dead rows in a `TaggedOutput`. Beam warns if the annotations say so.
    """

    def __init__(self, setup: ChatSetup) -> None:
        super().__init__(setup)
        self._current: ChatBundle[tuple[ChatRow, Timestamp, BoundedWindow]] | None = None

    def start_bundle(self) -> None:
        self._current = None
        self._counts.clear()

    def process(
        self, row: ChatRow, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        if self._current is None:
            self._current = self._bundle()
        for tag, result in self._current.add(core_row(row, self._current.engine), (row, timestamp, window)):
            yield self._windowed(tag, result)

    def finish_bundle(self) -> Iterator[Any]:
        if self._current is not None:
            for tag, result in self._current.finish():
                yield self._windowed(tag, result)
            self._current = None
        self._report()

    def _windowed(self, tag: tuple[ChatRow, Timestamp, BoundedWindow], result: Answer | DeadRow) -> Any:
        row, timestamp, window = tag
        element = WindowedValue(self._element(row, result), timestamp, (window,))
        return element if isinstance(result, Answer) else beam.pvalue.TaggedOutput(_DEAD, element)


class _AskGroup(_Asking):
    """Ask about the rows of a group as one bundle, for runners that drop what leaves `finish_bundle`."""

    def process(self, group: tuple[int, Iterable[ChatRow]]) -> Iterator[ChatAnswer | DeadChatRow]:
        bundle = self._bundle()
        for row in group[1]:
            for its, result in bundle.add(core_row(row, bundle.engine), row):
                yield self._element(its, result)
        for its, result in bundle.finish():
            yield self._element(its, result)
        self._report()


def core_row(row: ChatRow, engine: ChatEngine) -> Row:
    """Return what the engine needs to know of a row."""
    position = engine.reader.position_of(row.source)
    known: dict[str, Any] = {"asset_id": row.id, "kind": "image", "text": None, "fingerprint": UNKNOWN}
    known["source"] = position
    contents = [
        InlineReference(**known, uri=None, size_bytes=len(content), content=content) for content in row.images or ()
    ]
    uris = [Reference(**known, uri=uri, size_bytes=None) for uri in row.uris or ()]
    return Row(row_id=row.id, fields=orjson.loads(row.fields), images=(*contents, *uris))


def element_of(row_id: str, result: Answer | DeadRow) -> ChatAnswer | DeadChatRow:
    """Return the output element of a row."""
    if isinstance(result, DeadRow):
        return DeadChatRow(
            id=row_id,
            stage=result.stage,
            reason=str(result.reason),
            detail=result.detail,
            attempts=result.attempts,
            answer=result.answer,
        )
    return ChatAnswer(
        id=row_id,
        answer=result.text,
        parsed=None if result.parsed is None else orjson.dumps(result.parsed).decode(),
        finish_reason=result.finish_reason,
        model=result.model,
        emulator=result.emulator,
        input_tokens=result.input_tokens,
        output_tokens=result.output_tokens,
        cost=result.cost,
        requests=result.requests,
        request_sha256=result.request_sha256,
    )
