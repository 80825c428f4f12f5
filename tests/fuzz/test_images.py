"""Any image file is sent as a reference decoder renders it, or refused, in bounded time and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("EPITHRE_BEAM_FUZZ_S", "20"))
SEED = int(os.environ.get("EPITHRE_BEAM_FUZZ_SEED", "0"))
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(SECONDS * 2 + 240)]


def test_any_image_is_prepared_like_reference_or_refused(tmp_path: Path) -> None:
    note = tmp_path / "image"
    command = [sys.executable, "-m", "tests.fuzz.image_worker", str(SECONDS), str(SEED), str(note)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS * 2 + 200, check=False)
    if done.returncode:
        kept = Path(os.environ.get("TMPDIR", "/tmp")) / f"epithre-beam-fuzz-{SEED}.picture"
        kept.write_bytes(note.read_bytes() if note.exists() else b"")
        pytest.fail(f"exit code {done.returncode} for the image in {kept}:\n{done.stderr[-3000:]}")
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["tried"] > 10
    assert 0 < counts["sent"] < counts["tried"]
