"""The entry of the console script: Ctrl-C ends it with a short message even during imports."""

import os
import signal
import sys
from typing import NoReturn

from ...installs import broken_install
from .streams import open_closed_streams


def console() -> NoReturn:
    """The console script."""
    open_closed_streams()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stopped_early)
    try:
        from .cli import console as run
    except ImportError as error:
        if (sentence := broken_install(error)) is None:
            raise
        os.write(sys.stderr.fileno(), f"epithre-beam: {sentence}\n".encode())
        os._exit(2)
    run()


def _stopped_early(number: int, _: object) -> None:
    word = b"Terminated" if number == signal.SIGTERM else b"Interrupted"
    os.write(sys.stderr.fileno(), b"epithre-beam: " + word + b" before the command started.\n")
    os._exit(128 + number)
