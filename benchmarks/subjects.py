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


def measure(
    program: str, subject: str, arguments: Sequence[str], *, spans: bool = False, **settings: Any
) -> dict[str, float]:
    """Run a subject and return its figures, those of `report`, and what its emulator counted.

    Args:
        program: The program that runs the subject when it is called with `--subject`, and calls `report`.
        subject: The name of the subject.
        arguments: Further arguments of the program.
        spans: Whether to return the rate at which requests were admitted, without the first minute.
        settings: Settings of the emulator.
    """
    import httpx

    from epithre_beam.transforms.epithre.emulator import EmulatorSettings, start_emulator_process

    before_s = _cpu_s(resource.RUSAGE_CHILDREN)
    with start_emulator_process(EmulatorSettings(**settings)) as emulator:
        figures = _run(program, subject, ["--url", emulator.base_url, *arguments], {KEY_ENV: emulator.api_key})
        stats = httpx.get(f"{emulator.url}/emulator/stats").json()
        if spans:
            log = httpx.get(f"{emulator.url}/emulator/log", timeout=60).json()
            figures["rate_per_minute"] = rate_after_ramp(
                [one["decided_ns"] for one in log if one["decision"] == "admitted"]
            )
    figures["requests"] = stats["requests"]
    figures["refused"] = stats["statuses"].get("429", 0)
    figures["worst_window"] = stats["worst_window"]["requests"]
    figures["server_cpu_s"] = round(_cpu_s(resource.RUSAGE_CHILDREN) - before_s - figures["cpu_s"], 2)
    print(f"{subject:8s} {json.dumps(figures)}", flush=True)
    return figures


def rate_after_ramp(admitted_ns: Sequence[int]) -> float:
    """Return the requests a minute that were admitted, from a minute after the first one to the last one."""
    begin = min(admitted_ns) + 60_000_000_000
    counted = sorted(at for at in admitted_ns if at >= begin)
    return (len(counted) - 1) / ((counted[-1] - counted[0]) / 60e9)


def measure_alone(program: str, subject: str, arguments: Sequence[str]) -> dict[str, float]:
    """Run a subject that needs no emulator, and return its figures."""
    figures = _run(program, subject, arguments, {})
    print(f"{subject:8s} {json.dumps(figures)}", flush=True)
    return figures


def _run(program: str, subject: str, arguments: Sequence[str], added: Mapping[str, str]) -> dict[str, float]:
    command = [sys.executable, program, "--subject", subject, *arguments]
    # Workers in other processes import what a pipeline maps from the folder of the program.
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, **added, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    found = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return figures


def report(run: Callable[[], Mapping[str, float]]) -> None:
    """Run a subject in this process, and print its figures with the seconds and the peak memory that it took."""
    started = time.monotonic()
    figures = dict(run())
    figures["wall_s"] = round(time.monotonic() - started, 2)
    figures["cpu_s"] = round(_cpu_s(resource.RUSAGE_SELF) + _cpu_s(resource.RUSAGE_CHILDREN), 2)
    figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(figures))


def _cpu_s(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime
