"""Run a Hypothesis test for a number of seconds, with reproducible seeds."""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

SECONDS = float(os.environ.get("EPITHRE_BEAM_FUZZ_S", "20"))
SEED = int(os.environ.get("EPITHRE_BEAM_FUZZ_SEED", "0"))
_EXAMPLES = 25
"""Examples in a round, which has one seed."""


def fuzz(test: Callable[..., None], *arguments: SearchStrategy[Any]) -> None:
    """Call a test with drawn arguments in rounds, each with the next seed, until the time is over.

    Hypothesis shrinks a failing example, and the message has its seed: with this value as EPITHRE_BEAM_FUZZ_SEED, the
    first round fails again.
    """
    quiet = settings(
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    ends = time.monotonic() + SECONDS
    number, rounds = SEED, 0
    while time.monotonic() < ends or not rounds:
        try:
            seed(number)(quiet(given(*arguments)(test)))()
        except BaseException as error:
            error.add_note(f"Repeat it with EPITHRE_BEAM_FUZZ_SEED={number} (round {rounds} of this run).")
            raise
        number, rounds = number + 1, rounds + 1
    logging.getLogger(__name__).info("%d rounds, seeds %d to %d", rounds, SEED, number - 1)


fuzzing = [pytest.mark.fuzz, pytest.mark.timeout(SECONDS * 2 + 240)]
"""The marks of a file of fuzz targets. The timeout includes time for shrinking."""
