"""Where the console script begins: Ctrl-C ends it in a word even while it is still importing."""

import os
import signal
import sys
from typing import NoReturn

from ...installs import broken_install


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


def open_closed_streams() -> None:
    """Opens those of the three standard streams that were closed (`>&-`) on nothing.

    Otherwise the next file or connection would get a stream's number, and with it what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)  # for workers, which would meet the same
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))


def _stopped_early(number: int, _: object) -> None:
    word = b"Terminated" if number == signal.SIGTERM else b"Interrupted"
    os.write(sys.stderr.fileno(), b"epithre-beam: " + word + b" before anything was begun.\n")
    os._exit(128 + number)
