"""A step passes the launcher's setup to its function, and reports failures to the launcher."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from epithre_beam.configs.errors import SourceError
from epithre_beam.transforms.workers.failures import failure_of
from epithre_beam.transforms.workers.run_folder import RunFolder
from epithre_beam.transforms.workers.steps import Step


@dataclass(frozen=True)
class Divisor:
    """The setup of a step."""

    run: RunFolder
    by: int


def divide(element: int, setup: Divisor) -> int:
    if element < 0:
        raise SourceError(f"{element} must not be negative.", row=element)
    return element // setup.by


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(url=str(tmp_path), version="000001-x")


def test_step_calls_function_with_element_and_setup(run: RunFolder) -> None:
    assert Step(divide, Divisor(run, 3))(7) == 2
    assert failure_of(run) is None


@pytest.mark.parametrize(("element", "by", "raises"), [(-1, 3, SourceError), (7, 0, ZeroDivisionError)])
def test_step_raises_and_reports_failure(run: RunFolder, element: int, by: int, raises: type[Exception]) -> None:
    with pytest.raises(raises) as caught:
        Step(divide, Divisor(run, by))(element)
    found = failure_of(run)
    assert found is not None
    assert str(caught.value) in str(found)
