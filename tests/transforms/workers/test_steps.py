"""A step gives its function what the launcher said, and leaves what it raises where the launcher finds it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from epithre_beam.configs.errors import SourceError
from epithre_beam.transforms.workers.failures import failure_of
from epithre_beam.transforms.workers.run_folder import RunFolder
from epithre_beam.transforms.workers.steps import Step


@dataclass(frozen=True)
class Divisor:
    """What a step is told."""

    run: RunFolder
    by: int


def divide(element: int, setup: Divisor) -> int:
    if element < 0:
        raise SourceError(f"{element} must not be negative.", row=element)
    return element // setup.by


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(url=str(tmp_path), version="000001-x")


def test_the_function_has_the_element_and_the_setup(run: RunFolder) -> None:
    assert Step(divide, Divisor(run, 3))(7) == 2
    assert failure_of(run) is None


@pytest.mark.parametrize(("element", "by", "raises"), [(-1, 3, SourceError), (7, 0, ZeroDivisionError)])
def test_a_failure_is_raised_as_it_is_and_left_behind(
    run: RunFolder, element: int, by: int, raises: type[Exception]
) -> None:
    with pytest.raises(raises) as caught:
        Step(divide, Divisor(run, by))(element)
    found = failure_of(run)
    assert found is not None
    assert str(caught.value) in str(found)
