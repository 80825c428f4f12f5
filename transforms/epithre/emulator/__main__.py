"""`python -m epithre_beam.transforms.epithre.emulator`: serve until stopped.

When it is ready, it writes one line of JSON to standard output: {"base_url": …, "api_key": …}.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import yaml
from pydantic import ValidationError

from ....configs.yaml_text import parse_yaml
from .server import Emulator
from .settings import EmulatorSettings

_PARENT_POLL_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, or until the parent process ends; return 2 for invalid settings."""
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options)
    except (ValueError, yaml.YAMLError, OSError, TypeError) as error:
        sys.stderr.write(f"epithre-beam: invalid settings: {_reason(error)}.\n")
        return 2
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Emulator(settings) as emulator:
        ready = orjson.dumps({"base_url": emulator.base_url, "api_key": emulator.api_key})
        sys.stdout.write(ready.decode() + "\n")
        sys.stdout.flush()
        if options.exit_with_parent:
            _stop_with_parent(stop)
        while not stop.wait(_PARENT_POLL_S):
            pass  # wake up regularly, so that signals are handled on every platform
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="epithre_beam.transforms.epithre.emulator", description=__doc__)
    parser.add_argument("--settings", metavar="FILE", help="YAML or JSON; - reads one line of standard input")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, help="0: any free port")
    parser.add_argument("--model", choices=("hash", "attributes"))
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="stop when standard input or the parent process ends"
    )
    return parser


def _settings(options: argparse.Namespace) -> EmulatorSettings:
    """Read the settings from the file; command-line options override them."""
    text = ""
    if options.settings == "-":
        text = sys.stdin.buffer.readline().decode()
    elif options.settings:
        text = Path(options.settings).read_text(encoding="utf-8")
    fields: dict[str, Any] = parse_yaml(text) or {}
    if not isinstance(fields, dict):
        raise TypeError(f"settings must be a mapping, got {type(fields).__name__}")
    for name in ("host", "port", "model"):
        if getattr(options, name) is not None:
            fields[name] = getattr(options, name)
    return EmulatorSettings.model_validate(fields)


def _reason(error: Exception) -> str:
    """Format an error on one line, without the URLs that pydantic adds."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return " ".join(str(error).split())


def _stop_with_parent(stop: threading.Event) -> None:
    """Set `stop` when standard input or the parent process ends.

    Watching the pipe is not enough: another process that the parent forked holds the pipe open too and would keep the
    emulator alive after the parent's end.
    """
    parent = os.getppid()

    def watch_input() -> None:
        # Read the file descriptor, not sys.stdin: a daemon thread in a buffered read can crash the interpreter's exit.
        while os.read(0, 4096):
            pass
        stop.set()

    def watch_parent() -> None:
        while not stop.wait(_PARENT_POLL_S):
            if os.getppid() != parent:
                stop.set()

    for watch in (watch_input, watch_parent):
        threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
