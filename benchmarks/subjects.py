"""Runs a subject of a benchmark in a process of its own, against an emulator of its own, and collects its figures."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

KEY_ENV = "BENCH_KEY"
"""The environment variable that has the emulator's key in the process of a subject."""


def measure(program: str, subject: str, arguments: Sequence[str], **settings: Any) -> dict[str, float]:
    """Run a subject and return its figures, those of `report`, and what its emulator counted.

    Args:
        program: The program that runs the subject when it is called with `--subject`, and calls `report`.
        subject: The name of the subject.
        arguments: Further arguments of the program.
        settings: Settings of the emulator.
    """
    import httpx

    from epithre_beam.transforms.epithre.emulator import EmulatorSettings, start_emulator_process

    with start_emulator_process(EmulatorSettings(**settings)) as emulator:
        command = [sys.executable, program, "--subject", subject, "--url", emulator.base_url, *arguments]
        # Workers in other processes import what a pipeline maps from the folder of the program.
        paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {**os.environ, KEY_ENV: emulator.api_key, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        found = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        stats = httpx.get(f"{emulator.url}/emulator/stats").json()
    figures: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    figures["requests"] = stats["requests"]
    figures["refused"] = stats["statuses"].get("429", 0)
    figures["worst_window"] = stats["worst_window"]["requests"]
    print(f"{subject:8s} {json.dumps(figures)}", flush=True)
    return figures


def report(run: Callable[[], Mapping[str, float]]) -> None:
    """Run a subject in this process, and print its figures with the seconds and the peak memory that it took."""
    started = time.monotonic()
    figures = dict(run())
    figures["wall_s"] = round(time.monotonic() - started, 2)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    figures["cpu_s"] = round(sum(part.ru_utime + part.ru_stime for part in used), 2)
    figures["peak_mb"] = used[0].ru_maxrss // 1024
    print(json.dumps(figures))
