"""The schema of a job: every setting with its default, its unit and its rule.

Limits, sizes and formats of the API that its provider does not publish are settings here, not constants. The defaults
are safe for any server rather than fast for one.
"""

import ipaddress
import re
import socket
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

AssetKind = Literal["image", "text"]
MetadataType = Literal["string", "int", "double", "bool", "date", "timestamp"]
ImageFormat = Literal["jpeg", "png", "webp", "gif", "bmp", "tiff"]

Dialect = Literal["epithre", "openai", "jina", "voyage", "cohere", "vllm"]

EMULATOR = "emulator"
"""The `embed.base_url` that makes a run start the local emulator of the API."""
TRIAL = "--set embed.base_url=emulator --set catalog=trial"
"""Options to try a job without a server; in another catalog, so that no vector of the API is replaced."""

VARIABLE_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
"""The name of an environment variable."""

UNKNOWN_MODEL = "unknown"
"""The `embed.model` of imported vectors whose model the user did not name."""

_LONGEST_COLUMN = 1000


def check_base_url(url: str) -> str:
    """Return the address without trailing slashes. Raises ValueError, with rule and remedy, when it is invalid."""
    if url == EMULATOR:
        return url
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be an http(s) URL or the word `emulator`")
    if parts.username or parts.password:
        raise ValueError("must not contain a user name or password. Put the key in an environment variable")
    if parts.query or parts.fragment:
        raise ValueError("must not contain a query or fragment. Remove what follows `?` or `#`")
    return url.rstrip("/")


_LOOPBACK_NET = 127


def is_loopback(url: str) -> bool:
    """Whether `url` is on this machine, where plain http cannot leak a key."""
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
    """Whether `inet_aton` of C reads this as a loopback address: `127.1`, `0x7f000001`, `2130706433`."""
    try:
        return bool(re.fullmatch(r"[0-9a-fx.]+", host)) and socket.inet_aton(host)[0] == _LOOPBACK_NET
    except OSError:
        return False


def _check_location(url: str) -> str:
    if re.search(r"://[^/@]*:[^/@]*@", url):
        raise ValueError(
            "must not contain a password, because the pipeline's graph and the manifest store the config. Pass "
            "credentials through the environment"
        )
    return url


def _names(options: Any) -> Iterator[str]:
    """The keys of a mapping and of everything nested in it."""
    if isinstance(options, dict):
        for name, value in options.items():
            yield str(name)
            yield from _names(value)
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from _names(value)


def check_metadata_name(name: str) -> str:
    """Checks the name of a metadata column and returns it.

    Tabs and line breaks are allowed, because spreadsheets have them in column names.

    Raises:
        ValueError: The name has another control character, or more than 1000 characters.
    """
    if len(name) > _LONGEST_COLUMN or any(unicodedata.category(c) in {"Cc", "Cs"} and c not in "\t\n\r" for c in name):
        raise ValueError(
            f"names of metadata columns must have at most {_LONGEST_COLUMN} characters and no control characters, "
            f"got {name!r:.80}"
        )
    return name


_TABLE_CAPS = ("max_row_bytes", "max_rows", "max_expansion")


Location = Annotated[str, Field(min_length=1), AfterValidator(_check_location)]
"""A path or an fsspec URL."""
PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A section of a config: frozen, and strict about keys, so that a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceConfig(Section):
    """Where assets of one kind come from: files that match a pattern, or the rows of a table."""

    kind: AssetKind = Field(description="The kind of the assets: `image` or `text`.")
    files: Location | None = Field(
        None,
        description="A glob, folder or file, as a path or an fsspec URL. Each file is one asset; its id is the path "
        "relative to the fixed part of the pattern. Suffixes match in upper and lower case; hidden files are skipped.",
    )
    table: Location | None = Field(None, description="A CSV, JSON Lines or Parquet table: a file or a glob of files.")
    format: Literal["csv", "jsonl", "parquet"] | None = Field(
        None, description="The table's format. Absent: from the suffix of the file name."
    )
    id: str | None = Field(
        None, description="Table: the column with the ids of the assets. An id is unique within its kind."
    )
    text: str | None = Field(None, description="Table of texts: the column with the texts.")
    uri: str | None = Field(None, description="Table of images: the column with the paths or URLs of the images.")
    bytes: str | None = Field(None, description="Table of images (Parquet): the column with the bytes of the images.")
    within: tuple[Location, ...] = Field(
        (),
        description="Folders that `uri` may point into. Absent: the table's own folder. Relative URIs are resolved "
        "against the table's folder.",
    )
    metadata: dict[str, MetadataType] = Field(
        default_factory=dict, description="Columns of the table to store with each asset, and their types."
    )
    max_row_bytes: Annotated[int, Field(ge=1024)] = Field(
        16_777_216,
        description="Table: a CSV row, JSON line or Parquet cell of more bytes stops the run before it is read.",
    )
    max_rows: PositiveInt = Field(100_000_000, description="Table: a file with more rows stops the run.")
    max_expansion: PositiveInt = Field(
        1000,
        description="Table (Parquet): how many times larger than the file the decompressed columns may be. 256 MB are "
        "always allowed.",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Options for fsspec, without credentials: the cloud's client finds those in the environment.",
    )

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        for name in self.metadata:
            check_metadata_name(name)
        for name in _names(self.storage_options):
            if re.search(r"(?i)key|secret|token|password|credential", name):
                raise ValueError(
                    f"storage_options.{name} looks like a credential, and the pipeline's graph stores the config. "
                    f"Remove "
                    "it, and set the credential in the environment, where the cloud's client finds it"
                )
        if (self.files is None) == (self.table is None):
            raise ValueError("the source needs either `files` or `table`. Set exactly one of them")
        if self.files is not None:
            named = [n for n in ("id", "text", "uri", "bytes", "format") if getattr(self, n) is not None]
            named += [n for n in ("metadata", "within") if getattr(self, n)]
            named += [n for n in _TABLE_CAPS if getattr(self, n) != SourceConfig.model_fields[n].default]
            if named:
                raise ValueError(
                    f"`{named[0]}` applies only to a source with a `table`. Remove it, or replace `files` by `table`"
                )
            return self
        if self.id is None:
            raise ValueError("the table has no `id` column. Set `id` to the name of the column with the ids")
        if self.kind == "text" and (self.text is None or self.uri or self.bytes):
            raise ValueError(
                "a table of texts needs `text`, without `uri` and `bytes`. Set `text` to the name of its column"
            )
        if self.kind == "image" and ((self.uri is None) == (self.bytes is None) or self.text):
            raise ValueError("a table of images needs either `uri` or `bytes`, without `text`. Set exactly one of them")
        if self.within and self.uri is None:
            raise ValueError("`within` applies only to a table with a `uri` column. Remove it, or set `uri`")
        return self


class PrepareConfig(Section):
    """How assets are prepared before they are sent. A change embeds again the assets whose prepared form it changes."""

    formats: tuple[ImageFormat, ...] = Field(
        ("jpeg", "png", "webp", "gif", "bmp", "tiff"),
        description="Image formats that are accepted. The format is detected from the content, not from the file name.",
    )
    send_formats: tuple[ImageFormat, ...] = Field(
        ("jpeg", "png", "webp"), description="Image formats that are sent unchanged. The others are re-encoded."
    )
    as_is: Literal["any", "plain"] = Field(
        "any",
        description="Which images of `send_formats` are sent unchanged. `any`: every upright image within the size "
        "limits, for an API that supports colour profiles, bit depths and transparency. `plain`: only images that "
        "every decoder shows alike; an image with a colour profile, more than 8 bits, CMYK, transparency or several "
        "frames is converted, on a white background.",
    )
    check: Literal["structure", "decode"] = Field(
        "structure",
        description="How images are checked. `structure`: the header and the end of the file, about "
        "0.1 ms. `decode`: every pixel, about 2 ms for 200 kB.",
    )
    max_file_bytes: PositiveInt = Field(64_000_000, description="A larger file becomes a dead letter and is not read.")
    max_decode_pixels: PositiveInt = Field(
        120_000_000, description="An image whose header states more pixels becomes a dead letter and is not decoded."
    )
    max_side: PositiveInt = Field(
        100_000, description="An image with a longer side (pixels) becomes a dead letter and is not decoded."
    )
    decode_timeout_s: Positive = Field(20.0, description="An image that takes longer to decode becomes a dead letter.")
    max_pixels: PositiveInt = Field(16_000_000, description="An image with more pixels is downscaled.")
    max_image_bytes: PositiveInt = Field(
        2_900_000, description="An image with more bytes is re-encoded, then downscaled."
    )
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = Field(
        92, description="JPEG quality of images that are re-encoded."
    )
    max_text_chars: PositiveInt = Field(32_000, description="A longer text becomes a dead letter.")

    @model_validator(mode="after")
    def _check(self) -> "PrepareConfig":
        if not self.formats:
            raise ValueError("`formats` is empty. List at least one format")
        if not {"jpeg", "png"} & set(self.send_formats):
            raise ValueError(
                "`send_formats` has neither jpeg nor png, which other formats are re-encoded to. Add one of them"
            )
        return self


def stored_prepare(config: Mapping[str, Any]) -> PrepareConfig | None:
    """The `prepare` section of a manifest's config, with defaults for missing keys; None where it is invalid."""
    try:
        return PrepareConfig.model_validate(config.get("prepare") or {})
    except ValidationError:
        return None


_DIALECTS_WITH_INPUT_TYPES = ("voyage", "cohere")
_DIALECTS_OF_THE_EMULATOR = ("epithre", "openai")
_DIALECTS_OF_TEXTS = ("openai",)


class ApiConfig(Section):
    """What all APIs share: the address, the key, and the limits of requests, retries, cost and memory."""

    base_url: Annotated[str, AfterValidator(check_base_url)] = Field(
        "https://api.epithre.com/v1",
        description="The base URL of the API. `emulator` starts the local emulator for the run.",
    )
    profile: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Default settings for this section; keys set here override them. The name of a built-in profile "
        "(openai, voyage, cohere, jina, gateway) or the path of a YAML file. Applied when the config file is loaded.",
    )
    model: Annotated[str, Field(min_length=1)] = Field(description="The name of the model.")
    api_key_env: Annotated[str, Field(pattern=VARIABLE_NAME)] = Field(
        "EPITHRE_KEY", description="The name of the environment variable that holds the key, not the key itself."
    )
    allow_plain_http: bool = Field(False, description="Allow sending the key over plain http to another machine.")
    requests_per_minute: PositiveInt | None = Field(
        None, description="Maximum requests in any 60 s. Absent: learned from the server's answers."
    )
    tokens_per_minute: PositiveInt | None = Field(
        None, description="Maximum tokens in any 60 s. Absent: learned from the server's answers."
    )
    max_concurrency: PositiveInt = Field(
        256,
        description="Maximum requests in flight of a process. Of several users of one rate limiter the smallest "
        "maximum holds for all together.",
    )
    rate_limiter: Literal["memory", "host", "redis"] = Field(
        "memory",
        description="Where the rate limiter counts requests. memory: in the process of the only lane. host: in one "
        "process for all lanes on this host. redis: in Redis, for lanes on several machines and for several jobs with "
        "the same key.",
    )
    lanes: PositiveInt = Field(
        1,
        description="Lanes (workers that send requests) that embed in parallel. More than 1 requires "
        "`rate_limiter: host` or `redis`.",
    )
    rate_limiter_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] | None = Field(
        None,
        description="Who counts together: all that use the same name. Absent: all that use the same key and address.",
    )
    redis_url: str | None = Field(
        None, description="redis://HOST:PORT/DB without a password. Requires `rate_limiter: redis`."
    )
    redis_password_env: str | None = Field(
        None, description="The name of the environment variable that holds the Redis password."
    )
    price_per_1000_requests: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Price used for `max_cost` and for the cost in plan and report."
    )
    max_requests: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Maximum requests of a run, including retries and the probe. The run stops before it exceeds this, "
        "and the next run continues. 0: publish only if nothing must be sent.",
    )
    max_cost: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="Maximum cost of a run at the configured prices. The run stops before it exceeds this, and the "
        "next run continues. Tokens count as billed by the server; until it answers, as estimated.",
    )
    max_retry_after_s: Annotated[float, Field(ge=0)] = Field(
        600.0,
        description="Maximum pause (Retry-After) that the run waits for. If the API requests a longer pause, the run "
        "stops, keeps what it has finished, and reports when to run again.",
    )
    timeout_s: Positive = Field(
        120.0, description="Timeout of one request, from sending it to the end of the response."
    )
    max_sends: PositiveInt = Field(
        6,
        description="Maximum attempts per request. After that, while other requests succeed, the items of the failed "
        "request are sent in smaller requests to find the item at fault.",
    )
    retry_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.15,
        description="Maximum retries as a share of all requests. Further retries wait until more requests succeed.",
    )
    retry_dead: bool = Field(
        False, description="Send the dead letters of earlier runs again, for any reason. `retry-failed` sets this."
    )
    unit_references: PositiveInt = Field(
        512, description="Assets per unit (work unit), which is finished or repeated as a whole."
    )
    memory_mb: PositiveInt = Field(160, description="Maximum memory for images and vectors in flight.")
    readers: PositiveInt = Field(
        16, description="Threads that read and prepare remote assets. Local assets use one thread per core."
    )

    @property
    def limits(self) -> dict[str, float | None]:
        """The configured limits per minute, by the names that the rate limiter uses."""
        return {"requests": self.requests_per_minute, "tokens": self.tokens_per_minute}

    @model_validator(mode="after")
    def _check_api(self) -> Self:
        if self.lanes > 1 and self.rate_limiter == "memory":
            raise ValueError(
                f"lanes is {self.lanes}, but `rate_limiter: memory` counts the requests of one lane only. "
                "Set rate_limiter to host or redis, or lanes to 1"
            )
        if (self.rate_limiter == "redis") != (self.redis_url is not None):
            raise ValueError("`rate_limiter: redis` and `redis_url` require each other. Set both or neither")
        if self.redis_url is not None:
            redis = urlsplit(self.redis_url)
            is_secret = redis.username or redis.password or {"username", "password"} & parse_qs(redis.query).keys()
            if redis.scheme not in {"redis", "rediss"} or is_secret:
                raise ValueError(
                    "redis_url must be a URL such as redis://host:6379/0 without a user name or password. Put the "
                    "password in the variable that redis_password_env names"
                )
        if urlsplit(self.base_url).scheme == "http" and not is_loopback(self.base_url) and not self.allow_plain_http:
            raise ValueError(
                f"base_url {self.base_url!r} would send the key in clear text. Use https. Only the embed section of a "
                "job or transform can permit it, with allow_plain_http: true"
            )
        return self

    def check_allows_probe(self) -> None:
        """Check that `max_requests` leaves something to send after the probe of a job or a cache.

        Raises:
            ValueError: If it does not.
        """
        if self.max_requests == 1:
            raise ValueError(
                "max_requests is 1, which the probe needs for itself. Set at least 2, or 0 to send nothing"
            )


class EmbedConfig(ApiConfig):
    """The embedding API: its address, the model, and the limits of requests, retries, cost and memory."""

    dialect: Dialect = Field(
        "epithre",
        description="The protocol of the server. `base_url` ends with the API's version. epithre: texts and images. "
        "openai (https://api.openai.com/v1): texts only. jina (https://api.jina.ai/v1): texts and images. "
        "voyage (https://api.voyageai.com/v1) and cohere (https://api.cohere.com/v2): texts and images; documents and "
        "queries are embedded differently. vllm (your server, http://localhost:8000/v1): texts and images, one item "
        "per request.",
    )
    input_type: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="voyage and cohere: the input type of assets. Absent: `document` (voyage), `search_document` "
        "(cohere). Queries always use the provider's input type for queries.",
    )
    model: Annotated[str, Field(min_length=1)] = Field("epithre-embed", description="The name of the embedding model.")
    dimension: Annotated[int, Field(ge=8, le=65_536)] = Field(
        4000, description="The dimension of the vectors, which the API must return."
    )
    batch_items: PositiveInt = Field(64, description="Maximum items per request.")
    batch_bytes: Annotated[int, Field(ge=1024)] = Field(4_000_000, description="Maximum bytes of a request's body.")
    batch_tokens: PositiveInt | None = Field(None, description="Maximum estimated tokens per request.")
    items_per_minute: PositiveInt | None = Field(
        None, description="Maximum items in any 60 s. Absent: learned from the server's answers."
    )
    price_per_1000_items: Annotated[float, Field(ge=0)] = Field(0.0, description="As `price_per_1000_requests`.")
    price_per_million_tokens: Annotated[float, Field(ge=0)] = Field(0.0, description="As `price_per_1000_requests`.")
    emulator_model: Literal["attributes", "hash"] = Field(
        "attributes",
        description="With `base_url: emulator`: the emulator's model. `attributes` recognises colours and shapes; "
        "`hash` is fast.",
    )

    @property
    def limits(self) -> dict[str, float | None]:
        return {**super().limits, "items": self.items_per_minute}

    def cost(self, *, requests: int, items: int, tokens: int) -> float | None:
        """The cost at the configured prices, in their currency; None without prices."""
        prices = (self.price_per_1000_requests, self.price_per_1000_items, self.price_per_million_tokens)
        if not any(prices):
            return None
        return requests / 1e3 * prices[0] + items / 1e3 * prices[1] + tokens / 1e6 * prices[2]

    def may_send(self, *, requests: int, items: int, tokens: int) -> bool:
        """Whether a run that has sent this much in total is within `max_requests` and `max_cost`."""
        if self.max_requests is not None and requests > self.max_requests:
            return False
        # The tolerance is for rounding: a sum of prices such as 0.1 may be just above its limit.
        cost = self.cost(requests=requests, items=items, tokens=tokens) or 0.0
        return self.max_cost is None or cost <= self.max_cost * (1 + 1e-9)

    @model_validator(mode="after")
    def _check(self) -> "EmbedConfig":
        if self.max_cost is not None and self.cost(requests=1, items=1, tokens=1) is None:
            raise ValueError(
                f"max_cost is {self.max_cost:g}, but no price is configured. Set price_per_1000_requests, "
                "price_per_1000_items or price_per_million_tokens"
            )
        if self.input_type is not None and self.dialect not in _DIALECTS_WITH_INPUT_TYPES:
            raise ValueError(
                f"`input_type` applies only to the dialects {' and '.join(_DIALECTS_WITH_INPUT_TYPES)}, not to "
                f"{self.dialect!r}. Remove it"
            )
        if self.base_url == EMULATOR and self.dialect not in _DIALECTS_OF_THE_EMULATOR:
            raise ValueError(
                f"the emulator does not support dialect {self.dialect!r}. Use {' or '.join(_DIALECTS_OF_THE_EMULATOR)}"
            )
        if self.dialect != "epithre" and self.base_url != EMULATOR:
            # Epithre's address and key must never be the defaults for another provider.
            own = ("base_url",) if is_loopback(self.base_url) else ("base_url", "model", "api_key_env")
            missing = [name for name in own if name not in self.model_fields_set]
            if missing:
                raise ValueError(
                    f"dialect {self.dialect!r} has no defaults for {', '.join(f'`{name}`' for name in missing)}. Set "
                    f"{'it' if len(missing) == 1 else 'them'}"
                )
        return self

    @property
    def items_per_request(self) -> int:
        """Maximum items per request: `batch_items`, or 1 where the dialect allows only one."""
        return 1 if self.dialect == "vllm" else self.batch_items


class IndexConfig(Section):
    """The FAISS indexes, one per kind, and the recall they must reach before a version is published."""

    target_recall: Annotated[float, Field(ge=0, le=1)] = Field(
        0.95, description="Minimum recall at `recall_k` in every direction. A version below it is held back by a gate."
    )
    recall_k: Annotated[int, Field(ge=1, le=1000)] = Field(
        10, description="The number of hits per query that recall is measured on."
    )
    recall_queries: PositiveInt = Field(
        100, description="Assets sampled from each kind as queries, to tune the indexes and measure their recall."
    )
    queries: Location | None = Field(
        None,
        description="Real queries to tune and measure with, in addition to the sampled ones: a Parquet file, or a "
        "folder of Parquet files, with the columns `kind` and `embedding`.",
    )
    exact_up_to_mb: Annotated[float, Field(ge=0)] = Field(
        64, description="A kind whose vectors need at most this many MB as float16 is searched exactly, without codes."
    )
    dimensions: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        (128, 256, 512),
        description="Dimensions that codes may be projected to. The cheapest that reaches the recall is used.",
    )
    training_rows: Annotated[int, Field(ge=256)] = Field(
        6000, description="Maximum vectors of each kind that the projection is fitted on. Small kinds use an eighth."
    )
    rows_per_index: PositiveInt = Field(
        1_000_000, description="Maximum vectors per index file. `build_memory_mb` may lower it."
    )
    build_memory_mb: Annotated[int, Field(ge=1)] = Field(
        4096, description="Maximum memory of the process that builds an index file."
    )
    rows_per_file: PositiveInt = Field(50_000, description="Vectors per Parquet file.")
    vector_type: Literal["float32", "float16"] = Field(
        "float32", description="The type of the vectors in a version's Parquet files. float16 needs half the space."
    )
    seed: int = Field(0, description="The seed of sampling and training.")


class GateConfig(Section):
    """The gates: when a new version is held back instead of published."""

    max_dead_share: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="Maximum dead letters as a share of the assets. Absent: 1 %, or up to 5 dead letters if "
        "they are at most half of the assets, so that a small folder with a stray file is published.",
    )
    max_shrinkage: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="Maximum decrease of a kind's rows since the current version, as a share of them, so that a "
        "source with a failed listing does not empty the catalog. Absent: 20 %, or up to 20 rows if they are at most "
        "half of the kind's.",
    )
    max_turnover: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="Maximum share of the current version's rows that are removed or changed. Added ids, "
        "changed metadata, changed locations, and vectors of another model or preparation do not count. Absent: 50 %.",
    )


def _check_allows_probe(embed: EmbedConfig) -> EmbedConfig:
    embed.check_allows_probe()
    return embed


BeamOption = Annotated[str, Field(pattern=r"^--[A-Za-z]\w*(=|$)")]


class CatalogConfig(Section):
    """The settings that a version is built with: a job without its sources."""

    catalog: Location = Field(description="The catalog's location: a path or an fsspec URL.")
    job: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")] | None = Field(
        None,
        description="The job's name. A catalog belongs to one job and refuses others. Absent: the job is identified "
        "by its sources and the assets they list.",
    )
    embed: Annotated[EmbedConfig, AfterValidator(_check_allows_probe)] = EmbedConfig()
    prepare: PrepareConfig = PrepareConfig()
    index: IndexConfig = IndexConfig()
    gates: GateConfig = GateConfig()
    runner: str = Field("FnApiRunner", description="The Beam runner.")
    beam_options: tuple[BeamOption, ...] = Field(
        (),
        description="Options for Beam, e.g. `--parallelism=4`. Options after `--` on the command line override them.",
    )


class RunConfig(CatalogConfig):
    """A job: its sources, and the catalog it writes."""

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)] = Field(description="The sources of the assets.")

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        types: dict[str, str] = {}
        for source in self.sources:
            for name, kind in source.metadata.items():
                if types.setdefault(name, kind) != kind:
                    raise ValueError(
                        f"metadata column {name!r} is {types[name]} in one source and {kind} in another. Use one type"
                    )
        images = [i for i, source in enumerate(self.sources) if source.kind == "image"]
        if images and self.embed.dialect in _DIALECTS_OF_TEXTS:
            raise ValueError(
                f"sources[{images[0]}] has images, but embed.dialect {self.embed.dialect!r} embeds texts only. Remove "
                f"the "
                "source, or use another dialect"
            )
        return self

    @property
    def metadata_types(self) -> dict[str, MetadataType]:
        """The metadata columns of all sources with their types, sorted by name."""
        return dict(sorted((n, t) for source in self.sources for n, t in source.metadata.items()))
