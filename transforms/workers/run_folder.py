"""The folder of one run: launcher and workers, wherever they are, leave each other files there."""

from dataclasses import dataclass

from ...configs.errors import UnwritableError
from ...configs.words import unwritable
from ...index.storage.store import Store
from ...index.versions.layout import run_folder

_UNDER_WAY = "started"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Names a run. Travels through the pipeline's graph, so it holds no secret."""

    url: str
    """Of what the run writes: a catalog, or the output of a bulk search."""
    version: str
    """The name of the run, which is that of the version that it writes."""
    label: str = "catalog"
    """What the user calls `url`: a `catalog`, or an `output`."""

    def store(self) -> Store:
        return Store(self.url)

    def name(self, file: str) -> str:
        """A file of the run, as named in the store."""
        return f"{run_folder(self.version)}/{file}"

    def begin(self) -> None:
        """Marks the run as under way. Raises OSError when nothing can be written there."""
        self.store().write(self.name(_UNDER_WAY), b"")

    def end(self) -> None:
        """Takes the mark away: whoever still works for the run shall stop."""
        self.store().delete(self.name(_UNDER_WAY))

    def is_over(self) -> bool:
        """Whether the launcher has ended the run, or another run has begun since."""
        return self.store().size(self.name(_UNDER_WAY)) is None

    def unwritable(self, error: OSError) -> UnwritableError:
        """What it amounts to that a file of the run could not be written."""
        remedy = "What was finished is kept; run again when it can be written."
        return UnwritableError(unwritable(self.label, self.url, error, remedy))
