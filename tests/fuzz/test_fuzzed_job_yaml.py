"""Any text is a valid job or a short error, in bounded time. Runs for EPITHRE_BEAM_FUZZ_S seconds."""

import os
import random
import time
from pathlib import Path

import pytest

from epithre_beam.configs import load_config
from epithre_beam.configs.errors import ConfigError

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(0)]
SECONDS = float(os.environ.get("EPITHRE_BEAM_FUZZ_S", "20"))
JOB = """catalog: catalog
sources:
  - &s {kind: text, table: t.csv, id: id, text: t, metadata: {p: double}}
  - {<<: *s, kind: image, text: null, uri: u, within: [.]}
embed: {base_url: emulator, dimension: 16, batch_items: 8}
"""
PIECES = [
    "*s",
    "&s ",
    "[",
    "]",
    "{",
    "}",
    ": ",
    "- ",
    "\n",
    "  ",
    "<<: ",
    "!!int ",
    "!!binary ",
    "1:1",
    "${A}",
    "${A:-[1]}",
]
PIECES += [
    "2024-13-45",
    "0x",
    ".nan",
    "~",
    "? ",
    "|\n",
    "'",
    '"',
    "\t",
    "é",
    "\x85",
    "null",
    "catalog",
    "sources",
    "id",
    "%",
]


def test_any_text_is_a_job_or_a_short_error(tmp_path: Path) -> None:
    draw = random.Random(3)
    end = time.monotonic() + SECONDS
    path = tmp_path / "job.yaml"
    while time.monotonic() < end:
        text = JOB if draw.random() < 0.8 else ""
        for _ in range(draw.randrange(1, 12)):
            at = draw.randrange(len(text) + 1)
            cut = at + draw.choice([0, 0, 1, draw.randrange(12)])
            text = text[:at] + draw.choice(PIECES) * draw.choice([1, 1, 1, 2, 5000]) + text[cut:]
        path.write_text(text, "utf-8")
        begin, error = time.process_time(), ""
        try:
            load_config(path, environ={"A": "1"})
        except ConfigError as found:
            error = str(found)
        assert time.process_time() - begin < 20, text[:200]
        assert len(error) < 20_000, text[:200]
