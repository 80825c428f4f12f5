"""The chat client: sends a conversation with images and returns the model's answer, or why there is none."""

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
import orjson

from ...configs.caller import JOB, Caller
from ...configs.chat_schema import ChatConfig
from ...configs.errors import ApiError
from .answers import ErrorAnswer, read_error, read_tokens
from .bodies import Reply
from .circuit_breaker import CircuitBreaker
from .dialects.shape import claims_of, data_uri_json
from .meter import Meter
from .packing import Item
from .rate_limit.account import Account
from .rate_limit.rate_limiter import RateLimiter
from .rate_limit.spending import SpendingLimit
from .replies import broken_or_error, emulator_of, error_in
from .resolving import Refusal, Resolver
from .retries import ReportPause, log_pause
from .sender import Answered, Request, Sender
from .vectors import BrokenAnswerError

AMOUNTS = 1e9
"""What an amount of money is multiplied by, to be counted as a whole number."""
_MOST_TIMES_ESTIMATED = 1000
_BYTES_A_TOKEN = 4
_FORMATS = ("json_schema", "json_object", "none")
_FORMAT_REFUSED = re.compile(r"(?i)response.?format|json.?schema|structured.?output|json.?mode|json.?object")
_LONGEST_WORD = 64

log = logging.getLogger("epithre_beam.client")


@dataclass(frozen=True, kw_only=True)
class ResponseFormat:
    """The form of the answers."""

    name: str
    schema: dict[str, Any]
    is_strict: bool


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """The messages of a row."""

    messages: tuple[bytes, ...]
    """Each as JSON. The last message before an answer is a user's."""
    input_tokens: int
    """Estimated."""

    @property
    def size(self) -> int:
        """The length of the messages, in bytes."""
        return sum(map(len, self.messages))

    def with_answer(self, answer: str, question: str) -> "Conversation":
        """Return the conversation with an answer of the model and another message of the user."""
        more = (message("assistant", [text_part(answer)]), message("user", [text_part(question)]))
        return Conversation(
            messages=(*self.messages, *more),
            input_tokens=self.input_tokens + tokens_of(answer) + tokens_of(question),
        )


@dataclass(frozen=True, kw_only=True)
class ChatReply:
    """An answer of the model."""

    text: str
    refusal: str | None
    """What the model says instead of an answer; None: it did not refuse."""
    finish_reason: str
    """`stop`, `length`, `content_filter`, or another word of the server."""
    input_tokens: int
    """As billed; estimated if the server states none."""
    output_tokens: int
    model: str
    """As the server names it."""
    emulator: str | None
    """The fingerprint of the emulator that answered; None for any other server."""


def tokens_of(text: str) -> int:
    """Estimate the tokens of a text: the provider publishes no tokeniser."""
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_A_TOKEN)


def text_part(text: str) -> bytes:
    """Encode a text as a part of a message."""
    return b'{"type":"text","text":' + orjson.dumps(text) + b"}"


def image_part(content: bytes, detail: str | None = None) -> bytes:
    """Encode an image file as a part of a message."""
    after = b"}}" if detail is None else b',"detail":"' + detail.encode() + b'"}}'
    return b"".join((b'{"type":"image_url","image_url":{"url":', data_uri_json(content), after))


def message(role: str, parts: Sequence[bytes]) -> bytes:
    """Encode a message. `parts` are JSON; a single text is sent as a string, which every server takes."""
    if len(parts) == 1 and parts[0].startswith(b'{"type":"text","text":'):
        content = parts[0][len(b'{"type":"text","text":') : -1]
    else:
        content = b"[" + b",".join(parts) + b"]"
    return b'{"role":"' + role.encode() + b'","content":' + content + b"}"


class ChatClient:
    """Asks a chat model within the rate limits. Create, use and close it on one event loop.

    Args:
        settings: The `chat` section of a config.
        api_key: Sent as a bearer token; never logged or shown.
        response_format: The form of the answers; None: texts.
        rate_limiter: By default a new one, made from the settings.
        account: Counts what is spent of `max_requests` and `max_cost`; by default nobody else shares them.
        meter: Counts requests and tokens; by default a new one.
        seed: Seed of the retry jitter.
        sleep: Waits for a number of seconds; tests may shorten it.
        report_pause: Called before a pause that the server asks for.
        caller: Who asks; for messages.
    """

    def __init__(
        self,
        settings: ChatConfig,
        api_key: str,
        *,
        response_format: ResponseFormat | None = None,
        rate_limiter: RateLimiter | None = None,
        account: Account | None = None,
        meter: Meter | None = None,
        seed: int | None = None,
        sleep: Callable[[float], Any] = asyncio.sleep,
        report_pause: ReportPause = log_pause,
        caller: Caller = JOB,
    ) -> None:
        self._settings = settings
        self._sender = Sender(
            settings,
            api_key,
            limits=settings.limits,
            spending=spending_limit(settings),
            breaker=lambda on_open: CircuitBreaker(settings, caller=caller, on_open=on_open),
            rate_limiter=rate_limiter,
            account=account,
            meter=meter,
            seed=seed,
            sleep=sleep,
            report_pause=report_pause,
        )
        self.meter = self._sender.meter
        self._format = response_format
        asked = settings.response_format
        self._level = 0 if asked == "auto" else _FORMATS.index(asked)
        self._has_warned_of_bill = False
        fixed: dict[str, Any] = {"model": settings.model, settings.max_tokens_key: settings.max_tokens}
        fixed |= {n: v for n in ("temperature", "seed") if (v := getattr(settings, n)) is not None}
        self._tail = orjson.dumps({**fixed, **settings.extra_body})[1:]

    def __repr__(self) -> str:
        return f"ChatClient({self._settings.base_url!r}, model={self._settings.model!r})"

    @property
    def is_spent(self) -> bool:
        """Whether the spending limits stopped a request; no further request is sent."""
        return self._sender.is_spent

    @property
    def unreachable(self) -> ApiError | None:
        """The error if a request got no answer however often it was sent, and none of this client has succeeded."""
        return self._sender.breaker.unreachable

    @property
    def stopped_by(self) -> ApiError | None:
        """The error after which this client sends nothing more; None while it works."""
        return self._sender.breaker.error

    @property
    def needs_instructions(self) -> bool:
        """Whether the prompt has to state the schema, because the server is not sent it."""
        return self._format is not None and _FORMATS[self._level] != "json_schema"

    async def __aenter__(self) -> "ChatClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._sender.__aexit__(kind, error, trace)

    def reserved_cost(self, conversation: Conversation) -> float:
        """Return what a request costs at most, in the currency of the prices; 0 without prices."""
        cost = self._settings.cost(
            requests=1, input_tokens=conversation.input_tokens, output_tokens=self._settings.max_tokens
        )
        return cost or 0.0

    async def ask(self, conversation: Callable[[], Conversation]) -> ChatReply | Refusal:
        """Send a conversation, as often as needed.

        Args:
            conversation: Makes the conversation. It is called again when `needs_instructions` has changed, because the
                server turned out not to take a `response_format`.

        Returns:
            The reply, or why the server gave none.

        Raises:
            ApiError: If no further request can succeed.
        """
        resolver: Resolver[ChatReply] = Resolver(
            [Item(piece=b"", tokens=0)],
            send=lambda _: self._send(conversation),
            retries=self._sender.retries,
            is_spent=lambda: self.is_spent,
            meter=self.meter,
            max_sends=self._settings.max_sends,
        )
        await resolver.resolve([0])
        found = resolver.results[0]
        assert found is not None
        return found

    async def _send(
        self, make: Callable[[], Conversation]
    ) -> Sequence[ChatReply] | ErrorAnswer | BrokenAnswerError | None:
        """Send one request, or several while the server refuses the `response_format`."""
        while True:
            level = self._level
            outcome = await self._send_as(make(), level)
            if not (isinstance(outcome, ErrorAnswer) and self._refuses_format(outcome, level)):
                return outcome
            if level == self._level:  # of concurrent requests, the first one lowers it
                self._level += 1
                log.warning(
                    "%s does not take response_format %s (%s). Trying %s.",
                    self._settings.base_url,
                    _FORMATS[level],
                    outcome,
                    "instructions in the prompt" if _FORMATS[self._level] == "none" else _FORMATS[self._level],
                )

    async def _send_as(
        self, conversation: Conversation, level: int
    ) -> Sequence[ChatReply] | ErrorAnswer | BrokenAnswerError | None:
        settings = self._settings
        request = Request(
            path="/chat/completions",
            body=lambda: self._body(conversation, level),
            items=1,
            tokens=conversation.input_tokens + settings.max_tokens,
            amount=self._amount(conversation.input_tokens, settings.max_tokens),
            most_bytes=lambda _: settings.max_answer_bytes,
        )
        return await self._sender.send(
            request, lambda reply: self._read(reply, conversation.input_tokens), is_evidence=True
        )

    def _refuses_format(self, answer: ErrorAnswer, level: int) -> bool:
        if self._format is None or self._settings.response_format != "auto" or _FORMATS[level] == "none":
            return False
        return answer.status in {400, 404, 422, 501} and bool(_FORMAT_REFUSED.search(str(answer)))

    def _body(self, conversation: Conversation, level: int) -> bytes:
        form = b""
        if self._format is not None and _FORMATS[level] == "json_schema":
            schema = {"name": self._format.name, "schema": self._format.schema, "strict": self._format.is_strict}
            form = b',"response_format":' + orjson.dumps({"type": "json_schema", "json_schema": schema})
        elif self._format is not None and _FORMATS[level] == "json_object":
            form = b',"response_format":{"type":"json_object"}'
        return b"".join((b'{"messages":[', b",".join(conversation.messages), b"]", form, b",", self._tail))

    def _amount(self, input_tokens: int, output_tokens: int) -> int:
        """What tokens cost, for the spending limit, which counts requests itself."""
        settings = self._settings
        cost = input_tokens * settings.price_per_million_input_tokens
        cost += output_tokens * settings.price_per_million_output_tokens
        return round(cost / 1e6 * AMOUNTS)

    def _read(self, reply: Reply, input_tokens: int) -> Answered[list[ChatReply]]:
        scrubber = self._sender.scrubber
        if reply.status_code != httpx.codes.OK or reply.problem is not None:
            return Answered(outcome=error_in(read_error, reply, 1, scrubber) or BrokenAnswerError(reply.problem or ""))
        try:
            found = _parse(reply, input_tokens, self._settings.max_tokens)
        except BrokenAnswerError as broken:
            return Answered(outcome=broken_or_error(read_error, reply, 1, broken, scrubber))
        if not found.is_bill_plausible and not self._has_warned_of_bill:
            self._has_warned_of_bill = True
            log.warning(
                "%s: the billed tokens are not plausible. The estimate is counted. This warning appears once.",
                self._settings.base_url,
            )
        words = ChatReply(
            text=found.text,
            refusal=found.refusal,
            finish_reason=found.finish_reason,
            input_tokens=found.input_tokens,
            output_tokens=found.output_tokens,
            model=scrubber.text(found.model),
            emulator=emulator_of(reply, scrubber),
        )
        tokens = found.input_tokens + found.output_tokens
        self.meter.tokens_billed += tokens
        self.meter.items_embedded += 1
        amount = self._amount(found.input_tokens, found.output_tokens)
        return Answered(outcome=[words], tokens=tokens, amount=amount)


def spending_limit(settings: ChatConfig) -> SpendingLimit:
    """Return the limits of a chat, whose tokens have two prices: they are counted as an amount of money."""
    return SpendingLimit(
        max_requests=settings.max_requests,
        max_cost=settings.max_cost,
        price_of_request=settings.price_per_1000_requests / 1e3,
        price_of_token=1 / AMOUNTS,
    )


@dataclass(frozen=True, kw_only=True)
class _Parsed:
    text: str
    refusal: str | None
    finish_reason: str
    input_tokens: int
    output_tokens: int
    model: str
    is_bill_plausible: bool


def _parse(reply: Reply, input_tokens: int, max_tokens: int) -> _Parsed:
    """Read an answer. Raises BrokenAnswerError if it is not one."""
    try:
        answer = orjson.loads(reply.content)
    except orjson.JSONDecodeError:
        raise BrokenAnswerError("the answer is not valid JSON") from None
    try:
        choice = answer["choices"][0]
        words = choice["message"]
        text, refusal = words.get("content"), words.get("refusal")
        if isinstance(text, list):  # some servers answer in parts
            text = "".join(part.get("text", "") for part in text)
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise BrokenAnswerError(f"the answer has no message ({type(error).__name__})") from None
    if not isinstance(text, (str, type(None))) or not isinstance(refusal, (str, type(None))):
        raise BrokenAnswerError("the message's content is not a text")
    finish = choice.get("finish_reason")
    most = _MOST_TIMES_ESTIMATED * max(input_tokens, 1)
    read, is_read_plausible = read_tokens(claims_of(answer, ["usage"], ["prompt_tokens"]), most)
    written, is_written_plausible = read_tokens(
        claims_of(answer, ["usage"], ["completion_tokens"]), _MOST_TIMES_ESTIMATED * max_tokens
    )
    model = answer.get("model")
    return _Parsed(
        text=text or "",
        refusal=refusal,
        finish_reason=finish[:_LONGEST_WORD] if isinstance(finish, str) else "stop",
        input_tokens=read or input_tokens,
        output_tokens=written or min(tokens_of(text or ""), max_tokens),
        model=model[:200] if isinstance(model, str) else "",
        is_bill_plausible=is_read_plausible and is_written_plausible,
    )
