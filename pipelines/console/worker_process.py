"""A worker process of Beam's FnApiRunner without Beam's log messages on standard error.

    python -m epithre_beam.pipelines.console.worker_process FORMAT

Beam's own worker program logs every step, and each failure several times. Here the launcher reports a failure once.
"""

import io
import logging
import sys

from .logs import LogFormat, set_format


def main() -> None:
    logging.basicConfig(level=logging.INFO)  # the handler keeps the current standard error
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.WARNING)
        handler.addFilter(lambda record: not record.name.startswith(("apache_beam", "root")))
    set_format(LogFormat(sys.argv[1]))
    from apache_beam.runners.worker import sdk_worker_main

    real, sys.stderr = sys.stderr, _Nowhere()
    try:
        sdk_worker_main.main(sys.argv)
    except BaseException:
        sys.stderr = real  # show why the process itself fails
        raise


class _Nowhere(io.TextIOBase):
    """Discards the tracebacks that Beam prints in addition to its log."""

    def write(self, text: str) -> int:
        return len(text)


if __name__ == "__main__":
    main()
