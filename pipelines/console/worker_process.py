"""A worker process of Beam's FnApiRunner, which says on standard error only what a person can use.

    python -m epithre_beam.pipelines.console.worker_process FORMAT

Beam's own program logs every step, and each failure several times over; here the launcher tells it, once.
"""

import io
import logging
import sys

from .logs import LogFormat, set_format


def main() -> None:
    logging.basicConfig(level=logging.INFO)  # to the standard error that there is now
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.WARNING)
        handler.addFilter(lambda record: not record.name.startswith(("apache_beam", "root")))
    set_format(LogFormat(sys.argv[1]))
    from apache_beam.runners.worker import sdk_worker_main

    real, sys.stderr = sys.stderr, _Nowhere()
    try:
        sdk_worker_main.main(sys.argv)
    except BaseException:
        sys.stderr = real  # why the process itself fails is wanted
        raise


class _Nowhere(io.TextIOBase):
    """Takes the tracebacks that Beam prints beside its log."""

    def write(self, text: str) -> int:
        return len(text)


if __name__ == "__main__":
    main()
