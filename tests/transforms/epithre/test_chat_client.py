"""The chat client: one answer or one refusal for each conversation, within the limits, paid once."""

import asyncio
import json

import pytest

from epithre_beam.configs.chat_schema import ChatConfig
from epithre_beam.errors import ApiError, RefusedKeyError
from epithre_beam.transforms.epithre.chat_client import ChatClient, Conversation, ResponseFormat, message, text_part
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults, Limits
from epithre_beam.transforms.epithre.rate_limit.rate_limiter import RateLimiter
from epithre_beam.transforms.epithre.resolving import Refusal, RefusalReason

from .answering import CannedReply, answering

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string"}},
    "required": ["colour"],
    "additionalProperties": False,
}
FORM = ResponseFormat(name="answer", schema=SCHEMA, is_strict=True)
KEY = "emulator-key"


def scripted(*answers):
    """Return what a server answers: each in its turn, then the last one again; a status before it if it is no 200."""

    def answer(asked):
        found = answers[min(asked.number, len(answers) - 1)]
        status, body = found if isinstance(found, tuple) else (200, found)
        return CannedReply(status=status, body=body)

    return answering(answer)


GOOD = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}


def conversation(text="What is this?"):
    return Conversation(messages=(message("user", [text_part(text)]),), input_tokens=10)


def config(base_url, **settings):
    return ChatConfig(base_url=base_url, prompt="x", retry_share=1.0, **settings)


def ask(emulator, count=1, *, form=None, limiter=None, key=KEY, instructions=None, **settings):
    """Ask `count` questions at once, and return the replies and the client."""

    async def run():
        chat = config(emulator.base_url, **settings)
        client = ChatClient(
            chat, key, response_format=form, rate_limiter=limiter, sleep=lambda s: asyncio.sleep(min(s, 0.01))
        )

        def make(i):
            needs = client.needs_instructions and form is not None
            schema = f"\n```json\n{json.dumps(form.schema)}\n```" if needs else ""
            return conversation(f"Question {i}{schema}")

        async with client:
            return await asyncio.gather(*(client.ask(lambda i=i: make(i)) for i in range(count))), client

    return asyncio.run(run())


@pytest.fixture
def serve():
    started = []

    def start(faults=None, limits=None):
        one = Emulator(EmulatorSettings(dimension=16, faults=faults or Faults(), limits=limits or Limits()))
        started.append(one.start())
        return one

    yield start
    for one in started:
        one.close()


def test_a_reply_has_the_words_the_usage_and_the_model(serve):
    emulator = serve()
    [reply], client = ask(emulator)
    assert "Question 0" in reply.text
    assert (reply.finish_reason, reply.model, reply.refusal) == ("stop", "epithre-omni", None)
    assert reply.emulator == emulator.model.fingerprint
    assert client.meter.tokens_billed == reply.input_tokens + reply.output_tokens


def test_settings_reach_the_server():
    with scripted(GOOD) as server:
        ask(
            server,
            temperature=0.5,
            seed=7,
            max_tokens=99,
            max_tokens_key="max_completion_tokens",
            extra_body={"top_p": 0.9},
            form=FORM,
        )
        sent = json.loads(server.asked[0].body)
    assert sent.pop("messages")[0]["role"] == "user"
    assert sent.pop("response_format")["json_schema"] == {"name": "answer", "schema": SCHEMA, "strict": True}
    assert sent == {"model": "epithre-omni", "max_completion_tokens": 99, "temperature": 0.5, "seed": 7, "top_p": 0.9}


@pytest.mark.parametrize(("support", "refused"), [("full", 0), ("object", 1), ("refused", 2)])
def test_the_form_of_answers_is_what_the_server_takes(serve, support, refused):
    emulator = serve(Faults(response_format=support))
    [reply], client = ask(emulator, form=FORM)
    assert json.loads(reply.text).keys() == {"colour"}
    statuses = emulator.stats()["statuses"]
    assert statuses.get("400", 0) == refused
    assert client.needs_instructions == (support != "full")


def test_a_fixed_form_is_not_changed(serve):
    emulator = serve(Faults(response_format="refused"))
    [reply], _ = ask(emulator, form=FORM, response_format="json_schema", answer_schema=SCHEMA)
    assert isinstance(reply, Refusal)
    assert reply.reason is RefusalReason.REFUSED


@pytest.mark.parametrize(
    "faults",
    [{"error_500": 0.3}, {"error_503": 0.3}, {"rate_429": 0.3}, {"drop_connection": 0.3}, {"truncate_body": 0.3}],
    ids=lambda faults: next(iter(faults)),
)
def test_transient_failures_are_sent_again(serve, faults):
    emulator = serve(Faults(**faults))
    replies, _ = ask(emulator, 40)
    assert [f"Question {i}" in reply.text for i, reply in enumerate(replies)] == [True] * 40
    billed = [record for record in emulator.log if record.billed and record.delivered]
    assert len(billed) == 40


def test_no_window_exceeds_the_limit(serve):
    emulator = serve(Faults(latency_s=0.05), Limits(requests_per_minute=30, window_s=1.5))
    limiter = RateLimiter({"requests": 30}, max_concurrency=64, window_s=1.5)
    replies, _ = ask(emulator, 90, limiter=limiter)
    assert all(not isinstance(reply, Refusal) for reply in replies)
    assert emulator.stats()["statuses"] == {"200": 90}
    assert emulator.worst_window().requests <= 30


def test_tokens_are_reserved_and_then_counted_as_billed(serve):
    """Each reserves 1,010 tokens and uses some 50: with 3,000 in a window, more than two are answered in it."""
    emulator = serve(Faults(latency_s=0.02), Limits(tokens_per_minute=3000, window_s=3.0))
    limiter = RateLimiter({"tokens": 3000}, max_concurrency=64, window_s=3.0)
    replies, _ = ask(emulator, 20, limiter=limiter, max_tokens=1000)
    assert all(not isinstance(reply, Refusal) for reply in replies)
    stats = emulator.stats()
    assert stats["statuses"] == {"200": 20}
    assert stats["worst_window"]["tokens"] <= 3000
    assert stats["worst_window"]["requests"] > 3


def test_a_refused_key_stops_everything(serve):
    emulator = serve()
    limiter = RateLimiter({}, max_concurrency=8, is_key_accepted=False)
    with pytest.raises(RefusedKeyError) as error:
        ask(emulator, 5, key="wrong-key-123456", limiter=limiter)
    assert "wrong-key-123456" not in str(error.value)
    assert emulator.stats()["requests"] == 1


def test_a_server_that_refuses_every_chat_stops_the_run():
    refusal = (400, {"error": {"message": "temperature is not supported", "code": "unsupported"}})
    with scripted(refusal) as server, pytest.raises(ApiError, match="temperature is not supported"):
        ask(server, 50, max_concurrency=1)
    assert server.count() < 15


BROKEN = [
    b"",
    b"{",
    b"[]",
    b'{"choices":[]}',
    b'{"choices":[{}]}',
    b'{"choices":[{"message":{"content":3}}]}',
    b'{"choices":{"message":1}}',
    b'{"choices":[{"message":{"content":{"a":1}}}]}',
]


@pytest.mark.parametrize("body", BROKEN, ids=repr)
def test_an_answer_without_a_message_is_asked_again_and_then_refused(body):
    with scripted(GOOD, body, GOOD) as server:
        replies, _ = ask(server, 2, max_concurrency=1)
        assert [reply.text for reply in replies] == ["yes", "yes"]
        assert server.count() == 3
    with scripted(GOOD, body) as server:
        replies, _ = ask(server, 2, max_concurrency=1)
        assert replies[1].reason is RefusalReason.BROKEN_ANSWER
        assert server.count() == 4


def test_an_answer_in_parts_is_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    with scripted({"choices": [{"message": {"content": parts}}]}) as server:
        [reply], _ = ask(server)
    assert (reply.text, reply.finish_reason) == ("ab", "stop")


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": -1},
        {"prompt_tokens": "many"},
        {"prompt_tokens": 10**30, "completion_tokens": -1},
        7,
    ],
    ids=repr,
)
def test_an_implausible_bill_is_replaced_by_the_estimate(usage):
    answer = {"choices": [{"message": {"content": "yes"}}], "usage": usage}
    body = json.dumps(answer).encode()
    with scripted(body) as server:
        [reply], _ = ask(server)
    assert 0 < reply.input_tokens <= 10_000
    assert 0 < reply.output_tokens <= 1_024_000


def test_a_long_answer_is_not_read_to_its_end():
    with scripted({"choices": [{"message": {"content": "x" * 3_000_000}}]}) as server:
        [reply], _ = ask(server, max_answer_bytes=100_000, max_sends=2)
    assert isinstance(reply, Refusal)
    assert "100,000 bytes" in reply.detail


def test_no_more_is_spent_than_allowed(serve):
    emulator = serve()
    prices = {"price_per_million_input_tokens": 1.0, "price_per_million_output_tokens": 3.0, "max_tokens": 100}
    # Each costs (2 or 3 input tokens + some 20 output tokens), but 100 are reserved.
    replies, client = ask(emulator, 200, max_cost=0.002, max_concurrency=4, **prices)
    cost = sum(
        reply.input_tokens / 1e6 + 3 * reply.output_tokens / 1e6 for reply in replies if not isinstance(reply, Refusal)
    )
    assert 0.0015 < cost <= 0.002
    assert client.is_spent
    assert {reply.reason for reply in replies if isinstance(reply, Refusal)} == {RefusalReason.NOT_SENT}


def test_requests_are_limited_too(serve):
    emulator = serve()
    replies, _ = ask(emulator, 10, max_requests=4)
    assert sum(not isinstance(reply, Refusal) for reply in replies) == 4
    assert emulator.stats()["requests"] == 4
