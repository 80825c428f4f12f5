"""The folder of one run, in which launcher and workers exchange files."""

from dataclasses import dataclass

from ...configs.errors import UnwritableError
from ...configs.words import unwritable
from ...index.storage.store import Store
from ...index.versions.layout import run_folder

_UNDER_WAY = "started"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The location of a run's folder. Part of the pipeline graph, so it contains no secrets."""

    url: str
    """URL of the catalog, or of the output of a bulk search, that the run writes."""
    version: str
    """The name of the run, which is also the name of the version it writes."""
    label: str = "catalog"
    """The name of `url` in messages: `catalog` or `output`."""

    def store(self) -> Store:
        return Store(self.url)

    def name(self, file: str) -> str:
        """Return the name of a file of the run in the store."""
        return f"{run_folder(self.version)}/{file}"

    def begin(self) -> None:
        """Mark the run as started. Raises OSError when the store is not writable."""
        self.store().write(self.name(_UNDER_WAY), b"")

    def end(self) -> None:
        """Remove the mark, which makes the remaining workers of the run stop."""
        self.store().delete(self.name(_UNDER_WAY))

    def is_over(self) -> bool:
        """Whether the launcher has ended the run, or another run has begun since."""
        return self.store().size(self.name(_UNDER_WAY)) is None

    def unwritable(self, error: OSError) -> UnwritableError:
        """Return the error for a file of the run that could not be written."""
        remedy = "Finished work is kept. Run again when it can be written."
        return UnwritableError(unwritable(self.label, self.url, error, remedy))
