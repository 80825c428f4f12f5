"""Settings of an emulator: API keys, limits and injected faults.

They are frozen pydantic models, so that a job's YAML, a test and the command line use the same names.
By default, the emulator has no limits and injects no faults.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]

RetryAfterForm = Literal["seconds", "float", "date", "milliseconds", "absent"]
PoisonNaming = Literal["param", "prose", "nowhere"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Settings):
    """Limits that the server enforces. `None` means no limit.

    The three rates are enforced over a strict sliding window: at any time, at most `requests_per_minute` requests were
    admitted during the last `window_s` seconds. A shorter window keeps the number and shortens the wait, for tests.
    """

    requests_per_minute: PositiveInt | None = None
    items_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    concurrency: PositiveInt | None = None
    """Maximum number of concurrent requests; a further one is answered with 429 `slow_down`."""
    max_inputs: PositiveInt | None = None
    max_body_bytes: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    """Width x height of one image, read from its header."""
    max_tokens_per_input: PositiveInt | None = None
    window_s: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 60.0
    send_headers: bool = True
    """Whether answers include the `x-ratelimit-*` headers."""
    retry_after: RetryAfterForm = "seconds"


class Faults(_Settings):
    """Probabilities of the injected faults; each is drawn once per request to a model.

    The draw for the n-th such request depends on (seed, n) alone, and every fault has its own random number, so
    raising one probability does not change the other faults. Of the faults that replace the answer, the first in the
    order below applies; faults that alter a valid answer are combined.
    """

    start_at_request: Annotated[int, Field(ge=0)] = 0
    stop_at_request: PositiveInt | None = None
    """Faults (except latency, poison and `refuse_all`) apply to requests n with start <= n < stop: an outage."""

    latency_s: Seconds = 0.0
    latency_jitter_s: Seconds = 0.0
    """An admitted request is answered `latency_s` ± at most `latency_jitter_s` after its admission."""

    rate_429: Probability = 0.0
    rate_429_kind: Literal["rate_limit_exceeded", "slow_down"] = "rate_limit_exceeded"
    rate_429_retry_after_s: Seconds = 0.0
    """The pause that an injected 429 asks for, in the form of `Limits.retry_after`."""
    quota_429: Probability = 0.0
    drop_connection: Probability = 0.0
    """The connection is closed before the first byte of the answer."""
    hang: Probability = 0.0
    hang_s: Seconds = 30.0
    """Duration of a hang; then the connection is closed."""
    html_error: Probability = 0.0
    """A 502 with a proxy's HTML page."""
    error_500: Probability = 0.0
    error_503: Probability = 0.0
    truncate_body: Probability = 0.0
    """The answer stops halfway: fewer bytes than its Content-Length, then the connection is closed."""

    out_of_order: Probability = 0.0
    missing_item: Probability = 0.0
    duplicate_index: Probability = 0.0
    nan: Probability = 0.0
    wrong_dimension: Probability = 0.0
    unnormalised: Probability = 0.0
    ignore_base64: Probability = 0.0
    """The answer has lists of numbers although the request asked for base64."""

    chat_refusal: Probability = 0.0
    """A chat's message has a `refusal` and no content."""
    chat_filter: Probability = 0.0
    """A chat ends with `content_filter`."""
    chat_cut: Probability = 0.0
    """A chat ends with `length`, in the middle of its answer."""
    chat_empty: Probability = 0.0
    chat_prose: Probability = 0.0
    """JSON is in a fence, with prose around it."""
    chat_not_json: Probability = 0.0
    chat_wrong_schema: Probability = 0.0
    """JSON that is not of the schema: its first required property is missing."""
    response_format: Literal["full", "object", "refused", "ignored"] = "full"
    """What chats do with `response_format`: obey; obey only `json_object`, refusing `json_schema`; refuse; ignore."""

    html_413: bool = False
    """Every 413 is a proxy's HTML page."""
    poison_marker: Annotated[str, Field(min_length=1)] | None = None
    """The server refuses a whole request if the text or the image bytes of one item contain this marker."""
    poison_status: Literal[400, 422] = 400
    poison_names: PoisonNaming = "param"
    refuse_all: Annotated[int, Field(ge=400, le=599)] | None = None
    """Status for every request below /v1."""


class EmulatorSettings(_Settings):
    """Settings of an emulator; they can be sent unchanged to another process."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """0: any free port."""
    api_keys: Annotated[tuple[str, ...], Field(min_length=1, repr=False)] = ("emulator-key",)
    model: Literal["hash", "attributes"] = "hash"
    """The source of the vectors, whichever served model id a request names."""
    served_models: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "epithre-embed",
        "epithre-omni",
        "epithre-lyt",
        "epithre-iris",
    )
    dimension: PositiveInt = 4000
    seed: Annotated[int, Field(ge=0)] = 0
    limits: Limits = Limits()
    faults: Faults = Faults()
    image_tokens: PositiveInt = 1000
    """What an image costs in a chat."""
    validate_images: bool | None = None
    """Whether to decode images and refuse invalid ones. `None`: only with the `attributes` model, which always does."""
