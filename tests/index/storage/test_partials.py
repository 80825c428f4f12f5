"""The name of a partial file shows whether its writer is running, or 'unknown' for other machines."""

import os
import random
import re
import subprocess
import sys

import pytest

from epithre_beam.index.storage.partials import partial_name, writer_of

_NAME = "import os, sys\nfrom epithre_beam.index.storage.partials import partial_name\nprint(partial_name(sys.argv[1]))"


def test_partial_name_contains_the_file_name_and_is_hidden() -> None:
    for name in ("LATEST.json", ".lease.json", "a b.parquet", "é.faiss", "x.partial"):
        assert re.fullmatch(rf"\.{re.escape(name)}\.[0-9a-f]{{12}}\.partial", partial_name(name))


def test_partial_names_of_one_process_differ() -> None:
    assert len({partial_name("x") for _ in range(200)}) > 50


def test_writer_is_alive_while_its_process_runs() -> None:
    assert writer_of(f"units/{partial_name('x')}") == "alive"
    named = subprocess.run([sys.executable, "-c", _NAME, "x"], check=True, stdout=subprocess.PIPE, text=True)
    assert writer_of(f"a/b/{named.stdout.strip()}") == "dead"
    program = f"{_NAME}\nsys.stdout.flush()\nsys.stdin.read()"
    command = [sys.executable, "-c", program, "y"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert writer_of(name) == "alive"
        process.kill()
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT) is None:
            pass
        assert writer_of(name) == "dead"  # a zombie counts as dead
        process.wait()
        assert writer_of(name) == "dead"


@pytest.mark.parametrize("seed", range(3))
def test_writer_on_another_machine_is_unknown(seed: int) -> None:
    """One name in 65,536 matches by chance."""
    draws = random.Random(seed)
    names = [f".x.{draws.getrandbits(48):012x}.partial" for _ in range(100)]
    assert sum(writer_of(name) != "unknown" for name in names) <= 1


@pytest.mark.parametrize(
    "name", ["x", ".x.partial", "x.0123456789ab.partial", ".x.0123456789AB.partial", ".x.01.partial"]
)
def test_writer_of_a_malformed_name_is_unknown(name: str) -> None:
    assert writer_of(name) == "unknown"
