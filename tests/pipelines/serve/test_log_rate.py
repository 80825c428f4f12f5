"""Frequent log lines are written a few times, with a count of the others."""

import io
import logging
import re

from epithre_beam.pipelines.serve.log_rate import LogRate


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def logger_with(clock, handlers=1):
    logger, written = logging.Logger("x"), [io.StringIO() for _ in range(handlers)]
    rate = LogRate(clock)
    for stream in written:
        handler = logging.StreamHandler(stream)
        handler.addFilter(rate)
        logger.addHandler(handler)
    return logger, written


def test_a_thousand_lines_of_a_kind_become_a_few_and_a_count():
    clock = Clock()
    logger, (written,) = logger_with(clock)
    for i in range(1000):
        clock.now += 0.01
        logger.error("the API fails: %s", i)
    clock.now += 60
    logger.error("the API fails: %s", "last")
    lines = written.getvalue().splitlines()
    assert len(lines) <= 8
    assert lines[0] == "the API fails: 0"
    left_out = sum(
        int(found.replace(",", "")) for found in re.findall(r"and ([\d,]+) more like it", written.getvalue())
    )
    assert left_out == 1001 - len(lines)


def test_other_kinds_pass_and_all_handlers_agree():
    logger, (first, second) = logger_with(Clock(), handlers=2)
    for _ in range(100):
        logger.error("flood")
    logger.warning("a new version cannot be opened")
    assert first.getvalue() == second.getvalue()
    assert "a new version cannot be opened" in first.getvalue()


def test_all_kinds_together_are_limited():
    logger, (written,) = logger_with(Clock())
    for i in range(10_000):
        logger.error(f"never the same {i}")  # noqa: G004 - the subject of this test
    assert len(written.getvalue().splitlines()) <= 50
