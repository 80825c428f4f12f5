"""Printed texts never control the terminal; only the program's own drawing does."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from epithre_beam.pipelines.console.screen import SafeStream, Screen, guard_output, without_steering

from ..conftest import command, sentences

STEERS = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069]"
SEQUENCES = {
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[H",
    "clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "8-bit": "\x9b31m",
    "overwrite": "safe\rgone",
    "backspace": "abc\b\b\bxyz",
    "right to left": "gpj.\u202eexe",
}


@given(st.text())
def test_only_control_characters_change_and_json_restores_them(text):
    shown = without_steering(text)
    assert not re.search(STEERS, shown)
    assert (shown == text) == (not re.search(STEERS, text))
    document = json.dumps({"a": text}, ensure_ascii=False)
    assert json.loads(without_steering(document)) == {"a": text}


def test_a_safe_stream_writes_all_text_and_behaves_like_a_stream():
    inner = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    stream = SafeStream(inner)
    assert stream.write("a\x1b[1mb\n") == 7
    stream.writelines(["c\r", "é猫👩\u200d🚀\t\n"])
    stream.flush()
    assert inner.buffer.getvalue().decode() == "a\\u001b[1mb\nc\\u000dé猫👩\u200d🚀\t\n"
    assert stream.encoding == "utf-8"


def test_output_is_wrapped_once(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    guard_output()
    guarded = sys.stdout
    guard_output()
    assert sys.stdout is guarded
    sys.stdout.write("\x1b")
    assert sys.stdout.getvalue() == "\\u001b"


@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)
def test_a_screen_draws_its_own_colours_and_none_from_texts(monkeypatch, sequence):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    guard_output()
    table = Table(title=Text(sequence))
    table.add_column("id", style="red", overflow="fold")
    table.add_row(Text(sequence))
    screen = Screen()
    screen.print(table)
    screen.print(sequence, style="bold", highlight=False, markup=False)
    drawn = sys.stdout.getvalue()
    colours = re.compile(r"\x1b\[[\d;]*m")
    assert colours.search(drawn)
    assert not re.search(STEERS, colours.sub("", drawn))


HOSTILE = "".join(f"{name}{sequence}" for name, sequence in SEQUENCES.items())


@pytest.fixture
def hostile(place):
    """A catalog whose ids, texts and metadata have control sequences."""
    names = {"price": "string"}
    place.write_job(
        sources=[{"kind": "text", "table": "t.jsonl", "id": "id", "text": "text", "metadata": names}],
    )

    def write(words):
        rows = [{"id": f"{HOSTILE}{i}", "text": f"{words} {HOSTILE}{i}", "price": HOSTILE} for i in range(3)]
        (place.folder / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        done = place.cli("run", "job.yaml", "--set=gates.max_shrinkage=1", "--set=gates.max_turnover=1")
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    place.said = write("a cat") + write("a dog")
    return place


def test_no_command_prints_control_characters_of_an_asset(hostile):
    said = {"run": hostile.said}
    for words in (
        ("search", "catalog", "--text", "a dog"),
        ("search", "catalog", "--text", HOSTILE, "--json"),
        ("search", "catalog", "--text", "a", "--where", json.dumps({HOSTILE: 1})),
        ("search", "catalog", "--text", "a", "--kind", HOSTILE),
        ("versions", "diff", "catalog"),
        ("versions", "list", "catalog"),
        ("versions", "verify", "catalog", HOSTILE.replace("\x00", "")),
        ("search", HOSTILE, "--text", "a"),
        ("run", f"{HOSTILE}.yaml"),
        ("run", f"--{HOSTILE}"),
        ("plan", "job.yaml", f"--set=embed.model={HOSTILE}"),
    ):
        done = hostile.cli(*words)
        said[" ".join(words[:2])] = done.stdout + done.stderr
    for name, words in said.items():
        assert not re.search(STEERS, words), (name, re.search(f".{{0,30}}{STEERS}.{{0,30}}", words))
    assert "\\u001b]0;owned" in said["versions diff"]


def test_a_terminal_gets_no_control_characters_of_an_asset(hostile):
    """On a terminal with colours the control sequences of an id are still escaped."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("search", "catalog", "--text", "a dog"),
        stdout=theirs,
        stderr=theirs,
        **{
            name: value
            for name, value in hostile.process("key-for-tests-0123456789", {"TERM": "xterm-256color"}).items()
            if name not in {"stdout", "stderr"}
        },
    )
    os.close(theirs)
    drawn = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        drawn += part
    assert process.wait() == 0, drawn
    words = re.sub(r"\x1b\[[\d;]*m", "", drawn.decode().replace("\r\n", "\n"))
    assert "owned" in words
    assert not re.search(STEERS, words)


class Refusing(BaseHTTPRequestHandler):
    """A server whose messages have control sequences."""

    def do_GET(self):
        self.answer(200, {"data": [{"id": HOSTILE}, {"id": "epithre-embed"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.answer(401, {"error": {"message": HOSTILE, "code": HOSTILE}})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_control_characters_of_a_server_are_escaped(place):
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place.write_job(embed__base_url=f"http://127.0.0.1:{server.server_address[1]}/v1")
        done = [
            place.cli("run", "job.yaml", *more) for more in ((), ("--set=embed.model=other",), ("--log-format=text",))
        ]
        server.shutdown()
    for one in done:
        assert one.returncode == 2, one.stderr
        assert "owned" in sentences(one.stderr)[-1]
        assert not re.search(STEERS, one.stdout + one.stderr)
