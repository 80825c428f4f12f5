"""Every event is one line that a program can parse, whatever its values."""

import base64
import json
import logging
import random
import re
import sys

import pytest

from epithre_beam.pipelines.console.logs import LineFormatter, LogFormat, escaped

NASTY = [
    "\n",
    "\r\n",
    "\x85",
    "\u2028",
    "\u2029",
    "\x00",
    "\x1b[31m",
    "\u202e",
    "\udc80",
    '"',
    "\\",
    "=",
    " ",
    ",",
    "é猫",
]


def record(message, fields=None, level=logging.INFO, name="epithre_beam.run", error=None):
    made = logging.LogRecord(name, level, "", 0, message, None, error)
    if fields is not None:
        made.fields = fields
    return made


def read_logfmt(line):
    """The pairs of a logfmt line, after its time, level and event."""
    time, level, event, rest = ([*line.split(" ", 3), ""])[:4]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    pairs = re.findall(r'([^\s="]+)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?: |$)', rest)
    assert " ".join(f"{name}={value}" for name, value in pairs) == rest
    return level, event, {n: json.loads(v) if v.startswith('"') else v for n, v in pairs}


def hostile(seed):
    rng = random.Random(seed)
    return "".join(rng.choice([*NASTY, "a", "b.jpg", "1"]) for _ in range(rng.randint(0, 12)))


@pytest.mark.parametrize("seed", range(200))
def test_any_id_is_one_line_and_can_be_parsed(seed):
    text = hostile(seed)
    for form in LogFormat:
        line = LineFormatter(form).format(record("dead_letter", {"asset_id": text, "count": 3}))
        assert len(line.splitlines()) == 1
        assert not set(line) & set("\x1b\u202e\x00")
        line.encode()
        if form is LogFormat.JSON:
            found = json.loads(line)
            assert (found["event"], found["level"], found["count"]) == ("dead_letter", "INFO", 3)
        else:
            level, event, found = read_logfmt(line)
            assert (event, level, found["count"]) == ("dead_letter", "INFO", "3")
        assert found["asset_id"] == text


def test_nested_fields_lists_and_none_are_written_in_both_formats():
    fields = {"assets": {"image": 3, "text": 4}, "ids": ["a", "b c"], "cost": None, "seconds": 1.23456, "done": True}
    line = LineFormatter(LogFormat.TEXT).format(record("planned", fields))
    assert line.endswith('INFO planned assets.image=3 assets.text=4 ids="a, b c" seconds=1.235 done=true')
    found = json.loads(LineFormatter(LogFormat.JSON).format(record("planned", fields)))
    del found["time"]
    assert found == {
        "level": "INFO", "event": "planned", "assets": {"image": 3, "text": 4}, "ids": ["a", "b c"],
        "seconds": 1.235, "done": True,
    }  # fmt: skip


def test_a_record_with_an_event_keeps_its_sentence_as_the_message():
    made = record("switched to %s", {"version": "000002"}, name="epithre_beam.x")
    made.event, made.args = "version_loaded", ("000002",)
    found = json.loads(LineFormatter(LogFormat.JSON).format(made))
    del found["time"], found["level"]
    assert found == {
        "event": "version_loaded", "version": "000002", "logger": "epithre_beam.x", "message": "switched to 000002",
    }  # fmt: skip
    line = LineFormatter(LogFormat.TEXT).format(made)
    assert line.endswith('version_loaded logger=epithre_beam.x message="switched to 000002"')


def test_records_of_other_loggers_are_formatted_with_their_traceback():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        made = record("It failed:\n %s", level=logging.WARNING, name="apache_beam.x", error=sys.exc_info())
        made.args = ("why",)
    line = LineFormatter(LogFormat.JSON).format(made)
    found = json.loads(line)
    assert (found["event"], found["logger"], found["message"]) == ("log", "apache_beam.x", "It failed:\n why")
    assert "ValueError: two" in found["traceback"]
    line = LineFormatter(LogFormat.TEXT).format(made)
    assert len(line.splitlines()) == 1
    assert read_logfmt(line)[2]["logger"] == "apache_beam.x"


@pytest.mark.parametrize("form", LogFormat)
def test_a_secret_is_hidden_in_every_field(form):
    secret = 'sk-"x"-123456'
    formatter = LineFormatter(form, [secret, ""])
    fields = {"message": f"refused {secret}.", "deep": {"list": [secret]}}
    for made in (record("failed", fields), record(f"got {secret}")):
        line = formatter.format(made)
        assert "123456" not in line
        assert "***" in line
    assert "123456" not in repr(formatter)


def test_escaped_text_has_no_terminal_control_characters():
    assert escaped("a\x1b[31mb\nc\u202ed\u2028é猫") == "a\\u001b[31mb\\u000ac\\u202ed\\u2028é猫"


def test_no_line_shows_an_encoded_secret_or_a_urls_credentials():
    secret = "sk-logged/0123456789"
    forms = [
        secret,
        "sk%2Dlogged%2f0123456789",
        base64.b64encode(f"u:{secret}".encode()).decode(),
        secret.encode().hex(),
    ]
    fields = {"list": forms, "nested": {f"name {secret}": forms[1]}, "url": "https://me:hidden@host/?sig=hidden&x=1"}
    for form in LogFormat:
        formatter = LineFormatter(form, [secret])
        lines = [formatter.format(record("event", fields))]
        lines += [formatter.format(record(f"failed: {words} s3://a:hidden@b/", name="other")) for words in forms]
        for line in lines:
            assert "***" in line
            assert not [f for f in (*forms, "hidden") if f.lower() in line.lower()]
