"""How a command ends: its exit code, its sentence, and the one JSON document that says the same to programs."""

import contextlib
import errno
import json
import logging
import os
import signal
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from ..configs import ConfigError
from ..index.layout import LATEST
from ..index.lease import CatalogBusy
from ..index.manifest import CatalogError
from ..index.remote import as_os_error
from ..index.store import Store, StoreError
from ..transforms.epithre.client import RunStopped
from ..transforms.words import of_count
from .logs import LogFormat, hidden, line_of


class ExitCode(IntEnum):
    """What a scheduler is told."""

    PUBLISHED = 0
    FAILED = 1
    USAGE = 2
    HELD_BACK = 3
    BUSY = 4


class RunFailed(Exception):  # noqa: N818 - what happened to the run
    """The run failed and nothing was published; the message says why and what to do."""


class RunPaused(RunFailed):
    """The run has spent what it may; what it paid for is kept, and the next run goes on. `facts` are for programs."""

    def __init__(self, message: str, facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.facts = facts


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a command ended."""

    exit_code: int
    status: str
    """published, unchanged, searched, failed, stopped, usage, held_back, busy, terminated."""
    message: str
    """One sentence, sometimes several lines of them."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else a program may want to know: the report, if there is one."""

    @property
    def document(self) -> str:
        """For standard output, on one line."""
        first = {"exit_code": int(self.exit_code), "status": self.status, "message": self.message}
        return json.dumps({**first, **self.facts}, ensure_ascii=False)


def ending_of_report(report: Mapping[str, Any], catalog: str) -> Ending:
    """The ending of a run that wrote a version."""
    version, counts = report["version"], report["counts"]
    # What is drawn on the report's page is long, and stands in report.json.
    report = {name: value for name, value in report.items() if name not in {"series", "histograms"}}
    if report["held_back"]:
        sentences = [f"held back: {sentence}" for sentence in report["held_back"]]
        release = f"epithre-beam versions publish {catalog} {version}"
        sentences.append(f"The version is kept; after a look, `{release}` releases it.")
        return Ending(exit_code=ExitCode.HELD_BACK, status="held_back", message="\n".join(sentences), facts=report)
    rows = sum(counts["per_kind"].values())
    if report.get("unchanged"):
        return Ending(
            exit_code=ExitCode.PUBLISHED,
            status="unchanged",
            message=f"Nothing changed: {version} stays in force with {of_count(rows, 'vector')}.",
            facts=report,
        )
    sentence = f"{version} is published: {of_count(rows, 'vector')}, {counts['embedded']:,} of them new"
    if imported := report.get("imported"):
        sentence = f"{version} is published: {of_count(rows, 'vector')} from {imported['from']}"
        sentence += f", {imported['normalised']:,} of them normalised" if imported["normalised"] else ""
    sentence += f", {of_count(counts['dead'], 'dead letter')}." if counts["dead"] else "."
    return Ending(exit_code=ExitCode.PUBLISHED, status="published", message=sentence, facts=report)


def ending_of_search(report: Mapping[str, Any], output: str) -> Ending:
    """The ending of a bulk search."""
    place = f"{output.rstrip('/')}/{report['result']}"
    if report["held_back"]:
        sentences = [f"held back: {sentence}" for sentence in report["held_back"]]
        sentences.append(f"The hits are in {place} all the same, and {output}/LATEST.json does not name them.")
        return Ending(exit_code=ExitCode.HELD_BACK, status="held_back", message="\n".join(sentences), facts=report)
    asked, found = of_count(report["searched"], "query", "queries"), of_count(report["hits"], "hit")
    sentence = f"{asked} found {found} in {report['version']}: {place}/hits"
    if cut_off := report.get("cut_off"):
        asked = of_count(cut_off, "query has", "queries have")
        sentence += f"; {asked} more above search.min_score than search.k let them keep"
    if not report["hits"] and report["search"]["where"] is not None:
        sentence += "; perhaps no asset of these kinds fulfils search.where"
    sentence += f", {of_count(report['dead'], 'dead letter')}." if report["dead"] else "."
    return Ending(exit_code=ExitCode.PUBLISHED, status="searched", message=sentence, facts=report)


def ending_of_error(error: Exception) -> Ending | None:
    """The ending that an expected failure amounts to; None for a defect, whose traceback is wanted."""
    from ..transforms.queries import QueryError
    from ..transforms.sources import SourceError

    def ending(code: ExitCode, status: str, message: str | None = None, **facts: Any) -> Ending:
        return Ending(exit_code=code, status=status, message=str(error) if message is None else message, facts=facts)

    error = as_os_error(error, "The storage")  # a store's driver may raise where a file is read piece by piece
    if (usage := getattr(error, "format_message", None)) is not None:  # the command line's own errors
        return ending(ExitCode.USAGE, "usage", usage())
    if isinstance(error, (ConfigError, QueryError)):
        return ending(ExitCode.USAGE, "usage")
    if isinstance(error, CatalogBusy):
        return ending(ExitCode.BUSY, "busy")
    if isinstance(error, RunPaused):
        return ending(ExitCode.FAILED, "stopped", **error.facts)
    if isinstance(error, (RunFailed, RunStopped, CatalogError, StoreError, SourceError)):
        return ending(ExitCode.FAILED, "failed")
    if isinstance(error, ValueError):
        return ending(ExitCode.USAGE, "usage")
    if isinstance(error, ImportError):
        return ending(ExitCode.USAGE, "usage", _missing_package(error))
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOTDIR:
            return ending(
                ExitCode.USAGE, "usage", f"A folder is needed where a file stands{place}: name another place."
            )
        message = f"The storage refused: {error.strerror or error}{place}; mend it, then do the same again."
        return ending(ExitCode.FAILED, "failed", message)
    return None


_NO_FOLDER = frozenset({errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT})


def misplaced(name: str, store: Store, error: OSError) -> ConfigError | None:
    """What it amounts to that a local folder cannot be begun: no other try will change it.

    None where that is not so: what could be written before will be again, when its disk has room or is mounted.

    Args:
        name: What the user calls the folder.
        store: The folder.
        error: From the first write to it.
    """
    if not store.is_local:
        return None
    was_written = os.path.lexists(os.path.join(store.path(""), LATEST))  # noqa: PTH118 - a path that nobody may look at
    if error.errno not in (_NO_FOLDER if was_written else _NO_FOLDER | _NOT_ALLOWED):
        return None
    place = f": {error.filename}" if error.filename else ""
    return ConfigError(
        f"{name} must be a folder that can be made and written, got {store.url!r} ({error.strerror}{place})."
    )


def ending_of_defect(error: Exception) -> Ending:
    """The ending of a program that failed as nobody foresaw."""
    message = f"{type(error).__name__}: {error}: this is a defect of epithre-beam; what was finished is kept."
    return Ending(exit_code=ExitCode.FAILED, status="failed", message=message)


def ending_of_signal(number: int, *, is_run: bool) -> Ending:
    """The ending of a command that was stopped; only one that writes a version or a result has something to keep."""
    word = "Terminated" if number == signal.SIGTERM else "Interrupted"
    what = ": units that were finished are kept, run again to go on." if is_run else "."
    return Ending(exit_code=128 + number, status="terminated", message=word + what)


def _missing_package(error: ImportError) -> str:
    """A service installs neither Beam nor every store's driver: what to install, in a sentence."""
    name = (error.name or "").split(".")[0]
    extras = {"apache_beam": "beam", "duckdb": "beam", "s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure", "redis": "redis"}
    extras |= dict.fromkeys(("fastapi", "httptools", "uvicorn", "prometheus_client", "python_multipart"), "serve")
    extras |= dict.fromkeys(("sklearn", "scipy", "matplotlib"), "explore")
    extra = extras.get(name) or next((e for n, e in extras.items() if n in str(error)), None)
    if extra is None:
        return f"A package is missing: {error}."
    return f"This needs a package that is not installed ({error}): install epithre-beam[{extra}]."


@dataclass
class Speaker:
    """Says how a command ended: once, whatever ends it."""

    as_json: bool = False
    """Whether standard output gets the document."""
    log_format: LogFormat | None = None
    """Of a run's events; None when it tells none."""
    secrets: Collection[str] = field(default=(), repr=False)
    """What nothing that is said may show, such as the API's key."""
    is_run: bool = field(default=False, init=False)
    """Whether what the command has finished is kept when it is stopped."""
    is_over: bool = field(default=False, init=False)

    def end(self, ending: Ending, *, has_sentence: bool = True) -> None:
        """Says it, and nothing after it. Safe in a signal's handler: it takes no lock that the program may hold.

        Args:
            ending: How the command ended.
            has_sentence: Whether standard error is still to be told in words.
        """
        if self.is_over:
            return
        self.is_over = True
        if self.as_json:
            _write(1, hidden(ending.document, self.secrets))
        if not ending.exit_code:
            return
        has_sentence = has_sentence and self.log_format is not LogFormat.JSON
        if self.log_format is not None:
            level = logging.WARNING if ending.status == "held_back" else logging.ERROR
            # Where the sentence follows, the line does not say it too.
            fields = {"exit_code": int(ending.exit_code), "message": None if has_sentence else ending.message}
            fields |= {name: value for name, value in ending.facts.items() if name in {"version", "spent", "assets"}}
            _write(2, line_of(ending.status, level, fields))
        if has_sentence:
            lines = hidden(ending.message, self.secrets).splitlines()
            _write(2, "\n".join(f"epithre-beam: {line}" for line in lines))


def _write(descriptor: int, text: str) -> None:
    data = (text + "\n").encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError):  # nobody listens any more
        while data:
            data = data[os.write(descriptor, data) :]
