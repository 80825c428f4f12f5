"""The settings of a chat API: the model, the prompt, the form of the answers, and what a row may cost."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .schema import ApiConfig, PositiveInt

_OWN_KEYS = {"model", "messages", "stream", "response_format", "n", "temperature", "seed", "max_tokens"}
"""Keys of a request that other settings determine."""


class ChatConfig(ApiConfig):
    """The chat API: its address, the model, the prompt, and the limits of requests, tokens and cost."""

    model: Annotated[str, Field(min_length=1)] = Field(
        "epithre-omni", description="The name of the chat model. epithre-lyt is faster and cheaper, but less detailed."
    )
    prompt: Annotated[str, Field(min_length=1, max_length=100_000)] = Field(
        description="The template (Jinja2) of the text that is sent with the images of a row. Its fields are the "
        "columns of the row."
    )
    system: Annotated[str, Field(min_length=1, max_length=100_000)] | None = Field(
        None, description="The system message, which is the same for all rows."
    )
    answer_schema: str | dict[str, Any] | None = Field(
        None,
        description="The form of the answers: a JSON Schema, the path of a file with one, or the import path of a "
        "pydantic model (package.module:Model). Absent: answers are texts.",
    )
    response_format: Literal["auto", "json_schema", "json_object", "none"] = Field(
        "auto",
        description="How the server is told the form of the answers. json_schema: with the schema. json_object: JSON, "
        "with the schema in the prompt. none: in the prompt only. auto: json_schema, then the others if the server "
        "refuses it.",
    )
    max_repairs: Annotated[int, Field(ge=0, le=5)] = Field(
        1, description="How often an answer that does not match the schema is sent back with the error."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="The temperature. Absent: the server's default."
    )
    seed: int | None = Field(None, description="The seed, for servers that support one.")
    max_tokens: PositiveInt = Field(
        1024, description="Maximum tokens of an answer. An answer that needs more becomes a dead letter."
    )
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="The name under which the server takes `max_tokens`."
    )
    image_detail: Literal["low", "high", "auto"] | None = Field(
        None, description="The `detail` of images, for servers that have it. Absent: not sent."
    )
    image_tokens: PositiveInt = Field(
        1000, description="Estimated tokens of an image, until the server states what it counts."
    )
    max_request_bytes: Annotated[int, Field(ge=1024)] = Field(
        20_000_000, description="A row whose request has more bytes becomes a dead letter."
    )
    max_answer_bytes: Annotated[int, Field(ge=1024)] = Field(
        4_000_000, description="Maximum bytes of an answer's body. Reading stops there."
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="Other parameters of each request, such as `top_p`."
    )
    price_per_million_input_tokens: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Price used for `max_cost`, `max_row_cost` and for the cost in the answers."
    )
    price_per_million_output_tokens: Annotated[float, Field(ge=0)] = Field(
        0.0, description="As `price_per_million_input_tokens`."
    )
    max_row_cost: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Maximum cost of a row at the configured prices, with `max_tokens` of output and all repairs. A "
        "row that may cost more becomes a dead letter and is not sent.",
    )

    def cost(self, *, requests: int, input_tokens: int, output_tokens: int) -> float | None:
        """The cost at the configured prices, in their currency; None without prices."""
        prices = (
            self.price_per_1000_requests,
            self.price_per_million_input_tokens,
            self.price_per_million_output_tokens,
        )
        if not any(prices):
            return None
        return requests / 1e3 * prices[0] + input_tokens / 1e6 * prices[1] + output_tokens / 1e6 * prices[2]

    @field_validator("extra_body")
    @classmethod
    def _check_extra_body(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if own := sorted(_OWN_KEYS & extra.keys()):
            raise ValueError(f"must not contain {own[0]!r}, which is not an extra parameter. Remove it")
        return extra

    @model_validator(mode="after")
    def _check(self) -> "ChatConfig":
        for name in ("max_cost", "max_row_cost"):
            value = getattr(self, name)
            if value is not None and self.cost(requests=1, input_tokens=1, output_tokens=1) is None:
                raise ValueError(
                    f"{name} is {value:g}, but no price is configured. Set price_per_million_input_tokens, "
                    "price_per_million_output_tokens or price_per_1000_requests"
                )
        if self.answer_schema is None and self.response_format not in {"auto", "none"}:
            raise ValueError(
                f"response_format is {self.response_format!r}, but there is no answer_schema. Set answer_schema, or "
                "remove response_format"
            )
        return self
