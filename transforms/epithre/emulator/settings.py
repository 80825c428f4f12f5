"""What an emulator is: whom it lets in, which limits it enforces, which faults it injects.

Frozen pydantic models, so that a run's YAML, a test and the command line all say it in the same words.
The default is a well-behaved server without limits.
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
    """What the server admits. `None` means no limit.

    The three rates are enforced over a strict sliding window: at no instant were more than
    `requests_per_minute` requests admitted during the `window_s` seconds before it. A shorter window
    keeps the figure and shortens the wait, which is what a test wants.
    """

    requests_per_minute: PositiveInt | None = None
    items_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    concurrency: PositiveInt | None = None
    """Requests in service at once; one more is answered 429 `slow_down`."""
    max_inputs: PositiveInt | None = None
    max_body_bytes: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    """Width x height of one picture, read from its header."""
    max_tokens_per_input: PositiveInt | None = None
    window_s: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 60.0
    send_headers: bool = True
    """Whether answers carry the `x-ratelimit-*` headers."""
    retry_after: RetryAfterForm = "seconds"


class Faults(_Settings):
    """What goes wrong, and how often: each probability is drawn once per embeddings request.

    The draw for the n-th embeddings request is a function of (seed, n) alone, and every fault has its
    own number in it, so raising one probability does not move the others. Of the faults that replace
    the answer the first in the order below wins; those that alter a good answer add up.
    """

    start_at_request: Annotated[int, Field(ge=0)] = 0
    stop_at_request: PositiveInt | None = None
    """Faults (not latency, poison or `refuse_all`) strike requests n with start <= n < stop: an outage."""

    latency_s: Seconds = 0.0
    latency_jitter_s: Seconds = 0.0
    """An admitted request is answered `latency_s` ± up to `latency_jitter_s` after its admission."""

    rate_429: Probability = 0.0
    rate_429_kind: Literal["rate_limit_exceeded", "slow_down"] = "rate_limit_exceeded"
    rate_429_retry_after_s: Seconds = 0.0
    """What an injected 429 asks for, in the form of `Limits.retry_after`."""
    quota_429: Probability = 0.0
    drop_connection: Probability = 0.0
    """The connection is closed before any byte of the answer."""
    hang: Probability = 0.0
    hang_s: Seconds = 30.0
    """Nothing for so long, then the connection is closed."""
    html_error: Probability = 0.0
    """502 with a proxy's HTML page."""
    error_500: Probability = 0.0
    error_503: Probability = 0.0
    truncate_body: Probability = 0.0
    """The answer stops half-way: fewer bytes than its Content-Length, then the connection is closed."""

    out_of_order: Probability = 0.0
    missing_item: Probability = 0.0
    duplicate_index: Probability = 0.0
    nan: Probability = 0.0
    wrong_dimension: Probability = 0.0
    unnormalised: Probability = 0.0
    ignore_base64: Probability = 0.0
    """Lists of numbers although base64 was asked for."""

    html_413: bool = False
    """Every 413 is a proxy's HTML page."""
    poison_marker: Annotated[str, Field(min_length=1)] | None = None
    """An item whose text, or whose image bytes, contain this is refused with its whole request."""
    poison_status: Literal[400, 422] = 400
    poison_names: PoisonNaming = "param"
    refuse_all: Annotated[int, Field(ge=400, le=599)] | None = None
    """Answer every request below /v1 with this status."""


class EmulatorSettings(_Settings):
    """Everything an emulator needs to start; the fields travel unchanged to another process."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """0: any free port."""
    api_keys: Annotated[tuple[str, ...], Field(min_length=1, repr=False)] = ("emulator-key",)
    model: Literal["hash", "attributes"] = "hash"
    """Where the vectors come from, whichever served model id a request names."""
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
    validate_images: bool | None = None
    """Decode pictures and refuse what is none; `None`: only for the `attributes` model, which must."""
