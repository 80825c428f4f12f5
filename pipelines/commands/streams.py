"""Opens standard streams that were closed when the program started."""

import os
import sys


def open_closed_streams() -> None:
    """Connects closed standard streams (`>&-`) to the null device.

    Otherwise the next file or connection would get the stream's descriptor, and receive what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)  # worker processes need it too
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))
