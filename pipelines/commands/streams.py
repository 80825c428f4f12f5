"""The three standard streams, of which any may be closed where a program begins."""

import os
import sys


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
