"""Functions as steps of a pipeline."""

from collections.abc import Callable
from typing import Any, Protocol

from .failures import note_failure
from .run_folder import RunFolder


class Setup(Protocol):
    """Settings that the launcher passes to the steps of a run."""

    @property
    def run(self) -> RunFolder: ...


class Step:
    """A function with the run's setup, for Beam to call. Reports a failure to the launcher."""

    def __init__(self, function: Callable[[Any, Any], Any], setup: Setup) -> None:
        self._function = function
        self._setup = setup

    def __call__(self, element: Any) -> Any:
        try:
            return self._function(element, self._setup)
        except Exception as error:
            note_failure(self._setup.run, error)
            raise


def under_one_key(value: Any) -> tuple[int, Any]:
    return 0, value
