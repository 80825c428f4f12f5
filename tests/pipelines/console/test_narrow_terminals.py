"""Output is complete on a terminal of 40 columns, without colours, and in a pipe."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from ..conftest import Place, write_images

COLOURS = r"\x1b\[[\d;]*m"
LONG_ID = "a-folder-with-a-long-name/and-another-one-below-it/picture-000001.jpg"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A published catalog with an id longer than a line, and labels for it."""
    place = Place(tmp_path_factory.mktemp("narrow"))
    path = place.folder / "pictures" / LONG_ID
    path.parent.mkdir(parents=True)
    for i, image in enumerate(write_images(place.folder / "made", 6)):
        image.rename(path if i == 0 else place.folder / "pictures" / image.name)
    source = {"kind": "image", "files": "pictures/**/*.jpg"}
    place.write_job(sources=[source], embed__emulator_model="attributes", embed__dimension=256)
    (place.folder / "pairs.csv").write_text(f"query,relevant,relevant_kind\na picture,{LONG_ID},image\n")
    return place


def on_terminal(place, *words, columns=40, **environment):
    """The exit code of a command and its output on a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    options = place.process("key-for-tests-0123456789", {"TERM": "xterm-256color", **environment})
    options["env"].pop("COLUMNS")
    for name in ("stdout", "stderr", "text"):
        options.pop(name)
    program = Path(sys.executable).parent / "epithre-beam"
    process = subprocess.Popen([program, *words], stdin=theirs, stdout=theirs, stderr=theirs, **options)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            part = os.read(ours, 65_536)
        except OSError:
            break
        if not part:
            break
        drawn += part
    os.close(ours)
    return process.wait(), drawn.decode().replace("\r\n", "\n")


def unfolded(drawn):
    """The text without line breaks and padding."""
    return re.sub(r"\s+", "", re.sub(COLOURS, "", drawn))


def test_a_narrow_terminal_cuts_nothing_off(made):
    """Each command runs once, with NO_COLOR or on a dumb terminal."""
    code, drawn = on_terminal(made, "plan", "job.yaml", NO_COLOR="1")
    assert code == 0, drawn
    assert "atmost6assetsinabout1request" in unfolded(drawn)
    code, run = on_terminal(made, "run", "job.yaml", TERM="dumb")
    assert code == 0, run
    assert "6image(6new,0reused)" in unfolded(run)
    assert "\x1b" not in run
    (version,) = (path.name for path in (made.catalog / "versions").iterdir())
    assert version in unfolded(run)
    said = {"plan": drawn}
    for name, words, expected in (
        ("search", ("search", "catalog", "--text", "red", "-k", "6"), LONG_ID),
        ("versions", ("versions", "list", "catalog"), version),
        ("evaluate", ("evaluate", "catalog", "--pairs", "pairs.csv"), "exactsearch:"),
    ):
        code, said[name] = on_terminal(made, *words, NO_COLOR="1")
        assert code == 0, said[name]
        assert expected in unfolded(said[name]), said[name]
    for name, drawn in said.items():
        assert "…" not in drawn, (name, drawn)
        assert "\x1b" not in drawn, (name, drawn)
    # An id or a figure is not broken, so that it can be copied.
    assert LONG_ID in said["search"]
    assert re.search(r"\n  score: -?0\.\d{3}\n  kind: image\n", said["search"])


@pytest.mark.parametrize("words", [(), ("run",), ("versions",), ("search",)], ids=lambda words: words[:1] or "all")
def test_help_is_complete_on_a_narrow_terminal_without_control_sequences(made, words):
    wide = made.cli(*words, "--help")
    code, drawn = on_terminal(made, *words, "--help")
    assert code == 0, drawn
    assert max(map(len, drawn.splitlines())) <= 40
    assert "\x1b" not in drawn
    assert "\\u001b" not in drawn
    for text in (drawn, wide.stdout):
        assert "…" not in text.replace("K,…", "")
        assert "..." not in text.replace("...\n", "\n").replace("]...", "]")
    names = re.findall(r"--[a-z-]+", wide.stdout)
    assert names
    assert set(names) <= set(re.findall(r"--[a-z-]+", drawn))


def test_a_pipe_gets_every_value_without_control_sequences(made):
    made.cli("run", "job.yaml", "--quiet")
    for words in (("search", "catalog", "--text", "red"), ("versions", "list", "catalog"), ("plan", "job.yaml")):
        done = made.cli(*words, COLUMNS="", TERM="xterm-256color")
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        assert "…" not in done.stdout
    assert unfolded(LONG_ID) in unfolded(re.sub("[│ ]", "", made.cli("search", "catalog", "--text", "red").stdout))
