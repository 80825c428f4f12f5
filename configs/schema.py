"""The schema of a run: every setting with its default, its unit and its rule.

The API's limits, sizes and formats that the provider's guide leaves open are settings here and constants
nowhere. Each default was chosen to be safe on any server rather than fast on one.
"""

import ipaddress
import re
import socket
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

AssetKind = Literal["image", "text"]
MetadataType = Literal["string", "int", "double", "bool", "date", "timestamp"]
ImageFormat = Literal["jpeg", "png", "webp", "gif", "bmp", "tiff"]

Dialect = Literal["epithre", "openai", "jina", "voyage", "cohere", "vllm"]

EMULATOR = "emulator"
"""The `embed.base_url` that makes a run start the local API for itself."""

UNKNOWN_MODEL = "unknown"
"""The `embed.model` of vectors from elsewhere of which nobody said what made them."""

_LONGEST_COLUMN = 1000


def _check_base_url(url: str) -> str:
    if url == EMULATOR:
        return url
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be an http(s) URL or the word `emulator`")
    if parts.username or parts.password:
        raise ValueError("must not carry a user or password: name the key's variable in embed.api_key_env")
    if parts.query or parts.fragment:
        raise ValueError("must not carry a query or fragment")
    return url.rstrip("/")


_LOOPBACK_NET = 127


def is_loopback(url: str) -> bool:
    """Whether `url` names this machine, where plain http cannot leak a key."""
    host = (urlsplit(url).hostname or "").removesuffix(".")
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _is_short_loopback(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _is_short_loopback(host: str) -> bool:
    """Whether this is 127.0.0.1 or its like as C reads addresses: `127.1`, `0x7f000001`, `2130706433`."""
    try:
        return bool(re.fullmatch(r"[0-9a-fx.]+", host)) and socket.inet_aton(host)[0] == _LOOPBACK_NET
    except OSError:
        return False


def _check_location(url: str) -> str:
    if re.search(r"://[^/@]*:[^/@]*@", url):
        raise ValueError("must not carry a password: a config travels into the pipeline's graph and the manifest")
    return url


def _names(options: Any) -> Iterator[str]:
    """The keys of a mapping and of all that it holds."""
    if isinstance(options, dict):
        for name, value in options.items():
            yield str(name)
            yield from _names(value)
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from _names(value)


def check_metadata_name(name: str) -> str:
    """A metadata column's name. A spreadsheet's may have a line break; it becomes a column in files, SQL and tables.

    Raises:
        ValueError: When it has another control character, or is very long.
    """
    if len(name) > _LONGEST_COLUMN or any(unicodedata.category(c) in {"Cc", "Cs"} and c not in "\t\n\r" for c in name):
        raise ValueError(
            f"must have metadata columns of at most {_LONGEST_COLUMN} characters without control characters, "
            f"got {name!r:.80}"
        )
    return name


_TABLE_CAPS = ("max_row_bytes", "max_rows", "max_expansion")


Location = Annotated[str, Field(min_length=1), AfterValidator(_check_location)]
"""A path or an fsspec URL."""
PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of a config: frozen, and strict about keys, so that a misspelt one is never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceConfig(Section):
    """Where assets of one kind come from: files matched by a pattern, or the rows of a table."""

    kind: AssetKind
    files: Location | None = Field(
        None,
        description="A glob, folder or file as a path or fsspec URL. One asset a file; its id is the path below "
        "the fixed part of the pattern. Suffixes match in either case; hidden files are passed over.",
    )
    table: Location | None = Field(None, description="A csv, jsonl or parquet table: one file or a glob of files.")
    format: Literal["csv", "jsonl", "parquet"] | None = Field(
        None, description="The table's format; absent: by its suffix."
    )
    id: str | None = Field(None, description="Table: the column with the asset's id, unique within its kind.")
    text: str | None = Field(None, description="Table of texts: the column with the text.")
    uri: str | None = Field(None, description="Table of images: the column with the picture's path or URL.")
    bytes: str | None = Field(None, description="Table of images (parquet): the column with the picture's bytes.")
    within: tuple[Location, ...] = Field(
        (),
        description="Folders that `uri` may point into; absent: the table's own folder. Relative URIs start there.",
    )
    metadata: dict[str, MetadataType] = Field(
        default_factory=dict, description="Table columns kept with each asset, with their types."
    )
    max_row_bytes: Annotated[int, Field(ge=1024)] = Field(
        16_777_216, description="Table: a larger row of csv, line of JSON or cell of Parquet ends the run, unread."
    )
    max_rows: PositiveInt = Field(100_000_000, description="Table: one file with more rows ends the run.")
    max_expansion: PositiveInt = Field(
        1000,
        description="Table (parquet): the columns that are read may be so many times as large as their file; 256 MB "
        "they may always be.",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict, description="Options for fsspec. Credentials belong into the cloud's own chain."
    )

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        for name in self.metadata:
            check_metadata_name(name)
        for name in _names(self.storage_options):
            if re.search(r"(?i)key|secret|token|password|credential", name):
                raise ValueError(
                    f"has storage_options.{name}, which looks like a credential: a config travels into the pipeline's "
                    "graph, so credentials belong into the environment, where the cloud's own chain finds them"
                )
        if (self.files is None) == (self.table is None):
            raise ValueError("must name exactly one of `files` and `table`")
        if self.files is not None:
            named = [n for n in ("id", "text", "uri", "bytes", "format") if getattr(self, n) is not None]
            named += [n for n in ("metadata", "within") if getattr(self, n)]
            named += [n for n in _TABLE_CAPS if getattr(self, n) != SourceConfig.model_fields[n].default]
            if named:
                raise ValueError(f"has `{named[0]}`, which belongs to a `table`, not to `files`")
            return self
        if self.id is None:
            raise ValueError("has a `table` and must name its `id` column")
        if self.kind == "text" and (self.text is None or self.uri or self.bytes):
            raise ValueError("is a table of texts and must name its `text` column (and neither `uri` nor `bytes`)")
        if self.kind == "image" and ((self.uri is None) == (self.bytes is None) or self.text):
            raise ValueError("is a table of images and must name exactly one of its `uri` and `bytes` columns")
        if self.within and self.uri is None:
            raise ValueError("has `within`, which goes with a `uri` column")
        return self


class PrepareConfig(Section):
    """What is done to an asset before it is sent. A change here makes those vectors new that it changes."""

    formats: tuple[ImageFormat, ...] = Field(
        ("jpeg", "png", "webp", "gif", "bmp", "tiff"),
        description="Picture formats that are decoded, judged by content and never by name.",
    )
    send_formats: tuple[ImageFormat, ...] = Field(
        ("jpeg", "png", "webp"), description="Formats sent as they are; the others are re-encoded."
    )
    as_is: Literal["any", "plain"] = Field(
        "any",
        description="What of `send_formats` is sent as it is. `any`: what is upright and within the caps, for an API "
        "that honours colour profiles, depth and transparency. `plain`: only what every decoder shows alike; a picture "
        "with a colour profile, more than 8 bits, inks, transparency or frames is converted, on white.",
    )
    check: Literal["structure", "decode"] = Field(
        "structure",
        description="`structure`: header and end of the file are checked, about 0.1 ms; "
        "`decode`: every pixel, about 2 ms for 200 kB.",
    )
    max_file_bytes: PositiveInt = Field(64_000_000, description="A larger file is a dead letter, unread.")
    max_decode_pixels: PositiveInt = Field(
        120_000_000, description="A picture that claims more pixels is a dead letter, undecoded."
    )
    max_side: PositiveInt = Field(
        100_000, description="A picture with a longer side is a dead letter, undecoded: decoders work by lines."
    )
    decode_timeout_s: Positive = Field(20.0, description="A picture that takes longer is a dead letter.")
    max_pixels: PositiveInt = Field(16_000_000, description="A picture with more pixels is downscaled.")
    max_image_bytes: PositiveInt = Field(
        2_900_000, description="A picture with more bytes is re-encoded, then downscaled."
    )
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = Field(92, description="For pictures that must be re-encoded.")
    max_text_chars: PositiveInt = Field(32_000, description="A longer text is a dead letter.")

    @model_validator(mode="after")
    def _check(self) -> "PrepareConfig":
        if not self.formats:
            raise ValueError("must allow at least one of `formats`")
        if not {"jpeg", "png"} & set(self.send_formats):
            raise ValueError("must have jpeg or png among `send_formats`, so that others can be re-encoded")
        return self


def stored_prepare(config: Mapping[str, Any]) -> PrepareConfig | None:
    """The `prepare` section of a manifest's config, what it does not state at its default; None: it is unreadable."""
    try:
        return PrepareConfig.model_validate(config.get("prepare") or {})
    except ValidationError:
        return None


_DIALECTS_WITH_INPUT_TYPES = ("voyage", "cohere")
_DIALECTS_OF_THE_EMULATOR = ("epithre", "openai")
_DIALECTS_OF_TEXTS = ("openai",)


class EmbedConfig(Section):
    """The API: where it is, what it is asked, and the limits it is asked within."""

    base_url: Annotated[str, AfterValidator(_check_base_url)] = "https://api.epithre.com/v1"
    dialect: Dialect = Field(
        "epithre",
        description="How the server is spoken to; `base_url` ends with the API's version. epithre: texts and images. "
        "openai (https://api.openai.com/v1): texts only. jina (https://api.jina.ai/v1): texts and images. "
        "voyage (https://api.voyageai.com/v1) and cohere (https://api.cohere.com/v2): texts and images, documents "
        "apart from queries. vllm (your server, http://localhost:8000/v1): texts and images, one item a request.",
    )
    profile: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Settings of this section to start from, below whatever is said here: a shipped one (openai, "
        "voyage, cohere, jina, gateway) or the path of a YAML file. Applied when a config is read from its file.",
    )
    input_type: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="voyage and cohere: what assets are embedded as; absent: `document`, `search_document`. "
        "Queries are always embedded as the provider's queries.",
    )
    model: Annotated[str, Field(min_length=1)] = "epithre-embed"
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = Field(
        "EPITHRE_KEY", description="The name of the environment variable that holds the key, never the key."
    )
    allow_plain_http: bool = Field(False, description="Send the key over plain http to another machine.")
    dimension: Annotated[int, Field(ge=8, le=65_536)] = 4000
    batch_items: PositiveInt = Field(64, description="Items in a request at most.")
    batch_bytes: Annotated[int, Field(ge=1024)] = Field(4_000_000, description="Bytes of a request's body at most.")
    batch_tokens: PositiveInt | None = Field(None, description="Estimated tokens of a request at most.")
    requests_per_minute: PositiveInt | None = Field(None, description="Never exceeded in any 60 s; absent: learned.")
    items_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    max_concurrency: PositiveInt = Field(256, description="Requests in flight at most.")
    rate_limiter: Literal["memory", "host", "redis"] = Field(
        "memory",
        description="Where requests are counted. memory: in the one lane that sends; host: in one process for all "
        "lanes on this host; redis: in Redis, for lanes on many machines, and for several jobs that use one key.",
    )
    lanes: PositiveInt = Field(
        1, description="Workers that embed at the same time; more than one need `rate_limiter: host` or `redis`."
    )
    rate_limiter_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = Field(
        "epithre", description="Jobs that use one key of the API name one rate limiter."
    )
    redis_url: str | None = Field(None, description="redis://HOST:PORT/DB, without a password.")
    redis_password_env: str | None = Field(None, description="The name of the variable with Redis' password.")
    price_per_1000_requests: Annotated[float, Field(ge=0)] = Field(0.0, description="For the cost in plan and report.")
    price_per_1000_items: Annotated[float, Field(ge=0)] = 0.0
    price_per_million_tokens: Annotated[float, Field(ge=0)] = 0.0
    max_requests: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="A run stops before it would send more requests than this, retries and the greeting included, and "
        "the next one goes on. 0: publish only if nothing has to be sent.",
    )
    max_cost: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="A run stops before what it sends would cost more than this at the configured prices, and the "
        "next one goes on. Tokens count as the server bills them, before its answer as they are estimated.",
    )
    max_retry_after_s: Annotated[float, Field(ge=0)] = Field(
        600.0,
        description="How long a pause that the API asks for (Retry-After) is waited for at most; where it asks for a "
        "longer one the run ends, keeps what it has, and says when to run again.",
    )
    timeout_s: Positive = Field(120.0, description="For one request, from sending to the end of its answer.")
    max_sends: PositiveInt = Field(
        6,
        description="How often one request is sent at most. While the server serves others, the items of one that "
        "fails are then sent in smaller requests, to find the one at fault.",
    )
    retry_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.15, description="Retries as a share of all requests at most; beyond it they wait for successes."
    )
    retry_dead: bool = Field(
        False, description="Send dead letters of earlier runs again, whatever their reason was; `retry-failed` sets it."
    )
    unit_references: PositiveInt = Field(512, description="Assets in a unit, the piece that is finished or done again.")
    memory_mb: PositiveInt = Field(160, description="Pictures and vectors in flight at most.")
    readers: PositiveInt = Field(
        16, description="Threads that read and prepare remote assets; local ones take as many as there are cores."
    )
    emulator_model: Literal["attributes", "hash"] = Field(
        "attributes", description="With `base_url: emulator`: `attributes` knows colours and shapes, `hash` is fast."
    )

    def cost(self, *, requests: int, items: int, tokens: int) -> float | None:
        """At the configured prices, in their currency; None when there are none."""
        prices = (self.price_per_1000_requests, self.price_per_1000_items, self.price_per_million_tokens)
        if not any(prices):
            return None
        return requests / 1e3 * prices[0] + items / 1e3 * prices[1] + tokens / 1e6 * prices[2]

    def may_send(self, *, requests: int, items: int, tokens: int) -> bool:
        """Whether a run that has sent so much in all is within `max_requests` and `max_cost`."""
        if self.max_requests is not None and requests > self.max_requests:
            return False
        # A sum of prices such as 0.1 must not fail at its own limit.
        cost = self.cost(requests=requests, items=items, tokens=tokens) or 0.0
        return self.max_cost is None or cost <= self.max_cost * (1 + 1e-9)

    @model_validator(mode="after")
    def _check(self) -> "EmbedConfig":
        if self.max_cost is not None and self.cost(requests=1, items=1, tokens=1) is None:
            raise ValueError(
                f"has max_cost={self.max_cost:g}, which needs a price to count with: set price_per_1000_requests, "
                "price_per_1000_items or price_per_million_tokens"
            )
        if self.max_requests == 1:
            raise ValueError(
                "has max_requests=1, which is used up by the greeting: set at least 2, or 0 to send nothing"
            )
        if self.lanes > 1 and self.rate_limiter == "memory":
            raise ValueError(
                f"has lanes={self.lanes}, which need `rate_limiter: host` or `redis`: "
                "a lane's memory counts its own requests only"
            )
        if (self.rate_limiter == "redis") != (self.redis_url is not None):
            raise ValueError("must have `rate_limiter: redis` and `redis_url` together")
        if self.redis_url is not None:
            redis = urlsplit(self.redis_url)
            is_secret = redis.username or redis.password or {"username", "password"} & parse_qs(redis.query).keys()
            if redis.scheme not in {"redis", "rediss"} or is_secret:
                raise ValueError(
                    "must have a redis_url such as redis://host:6379/0, its password in redis_password_env"
                )
        if urlsplit(self.base_url).scheme == "http" and not is_loopback(self.base_url) and not self.allow_plain_http:
            raise ValueError(
                f"would send the key in clear text to {self.base_url!r}: use https, or set allow_plain_http"
            )
        if self.input_type is not None and self.dialect not in _DIALECTS_WITH_INPUT_TYPES:
            raise ValueError(
                f"has `input_type`, which goes with the dialects {' and '.join(_DIALECTS_WITH_INPUT_TYPES)}, "
                f"not with {self.dialect!r}"
            )
        if self.base_url == EMULATOR and self.dialect not in _DIALECTS_OF_THE_EMULATOR:
            raise ValueError(
                f"has dialect {self.dialect!r}, but the emulator speaks only {' and '.join(_DIALECTS_OF_THE_EMULATOR)}"
            )
        if self.dialect != "epithre" and self.base_url != EMULATOR:
            # Epithre's address, and its key above all, must never be another provider's by default.
            own = ("base_url",) if is_loopback(self.base_url) else ("base_url", "model", "api_key_env")
            missing = [name for name in own if name not in self.model_fields_set]
            if missing:
                raise ValueError(
                    f"has dialect {self.dialect!r} and must say its own {', '.join(f'`{name}`' for name in missing)}: "
                    "the defaults are Epithre's"
                )
        return self

    @property
    def items_per_request(self) -> int:
        """Items in a request at most: `batch_items`, or one where the dialect knows no more."""
        return 1 if self.dialect == "vllm" else self.batch_items


class IndexConfig(Section):
    """The FAISS indexes, one a kind, and what they must reach to be published."""

    target_recall: Annotated[float, Field(ge=0, le=1)] = Field(
        0.95, description="Recall at `recall_k` in every direction; below it the version is held back."
    )
    recall_k: Annotated[int, Field(ge=1, le=1000)] = 10
    recall_queries: PositiveInt = Field(
        100, description="Queries drawn from each kind, by which indexes are tuned and their recall is measured."
    )
    queries: Location | None = Field(
        None,
        description="Real queries to tune and measure with as well: a Parquet file, or a folder of them, with columns "
        "`kind` and `embedding`.",
    )
    exact_up_to_mb: Annotated[float, Field(ge=0)] = Field(
        64, description="A kind whose vectors take no more than this as fp16 is searched exactly, without codes."
    )
    dimensions: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        (128, 256, 512), description="What codes may be projected to; the cheapest that keeps the recall is taken."
    )
    training_rows: Annotated[int, Field(ge=256)] = Field(6000, description="Of each kind, to fit the projection.")
    rows_per_index: PositiveInt = Field(
        1_000_000, description="Vectors in one index file; fewer where `build_memory_mb` asks for it."
    )
    build_memory_mb: Annotated[int, Field(ge=1)] = Field(
        4096, description="Memory for building one index file, the process that builds it included."
    )
    rows_per_file: PositiveInt = Field(50_000, description="Vectors in one Parquet file.")
    vector_type: Literal["float32", "float16"] = Field(
        "float32", description="How a version's Parquet files hold vectors; float16 takes half the space."
    )
    seed: int = 0


class GateConfig(Section):
    """What holds a new version back instead of publishing it."""

    max_dead_share: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="Dead letters as a share of the assets. Absent: 1 %, but up to 5 of them are let through "
        "as long as they are no more than half, so that a small folder with a stray file is published.",
    )
    max_shrinkage: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="How much smaller than in the version in force a kind may be, as a share of its rows: a source "
        "that suddenly lists little must not empty the catalog. Absent: 20 %, but up to 20 rows may go as long as they "
        "are no more than half.",
    )
    max_turnover: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="How much of the current version may be replaced, as a share of its rows: ids that are gone, and "
        "ids with another content. New ids, other metadata, other places and vectors of another model or preparation "
        "do not count. Absent: 50 %.",
    )


BeamOption = Annotated[str, Field(pattern=r"^--[A-Za-z]\w*(=|$)")]


class CatalogConfig(Section):
    """What a version is made with, wherever its rows come from: a job without its sources."""

    catalog: Location = Field(description="A path or an fsspec URL.")
    job: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")] | None = Field(
        None,
        description="The job's name. A catalog belongs to one job; another is refused. Absent: a job is known by its "
        "sources and by the assets that they list.",
    )
    embed: EmbedConfig = EmbedConfig()
    prepare: PrepareConfig = PrepareConfig()
    index: IndexConfig = IndexConfig()
    gates: GateConfig = GateConfig()
    runner: str = Field("FnApiRunner", description="A Beam runner.")
    beam_options: tuple[BeamOption, ...] = Field(
        (), description="Beam's own options, e.g. `--parallelism=4`; those after `--` on the command line go over them."
    )


class RunConfig(CatalogConfig):
    """One job: sources in, a catalog out."""

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        types: dict[str, str] = {}
        for source in self.sources:
            for name, kind in source.metadata.items():
                if types.setdefault(name, kind) != kind:
                    raise ValueError(
                        f"has metadata column {name!r} as {types[name]} in one source and as {kind} in another; "
                        "they must agree"
                    )
        images = [i for i, source in enumerate(self.sources) if source.kind == "image"]
        if images and self.embed.dialect in _DIALECTS_OF_TEXTS:
            raise ValueError(
                f"has images in sources[{images[0]}], but embed.dialect {self.embed.dialect!r} embeds texts only"
            )
        return self

    @property
    def metadata_types(self) -> dict[str, MetadataType]:
        """The metadata columns of all sources, by name in alphabetical order."""
        return dict(sorted((n, t) for source in self.sources for n, t in source.metadata.items()))
