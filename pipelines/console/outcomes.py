"""How a command ends: its exit code, its sentence, and the one JSON document that says the same to programs."""

import contextlib
import errno
import logging
import os
import signal
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from ...configs.errors import (
    ApiPausedError,
    ApiRefusedError,
    DefectError,
    EpithreBeamError,
    ExitCode,
    GateError,
    SpendingLimitError,
)
from ...configs.words import of_count
from ...index.storage.remote import as_os_error
from ...index.versions.stored_names import GATE_FAILURES
from ...installs import broken_install
from .documents import json_text
from .help import usage_sentence
from .logs import LogFormat, hidden, line_of
from .screen import without_steering

if TYPE_CHECKING:
    from ...transforms.batch_search.last_step import SearchReport
    from ...transforms.reports.report import Report

_STATUS = {ExitCode.USAGE: "usage", ExitCode.HELD_BY_GATE: "held_by_gate", ExitCode.BUSY: "busy"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended."""

    exit_code: int
    status: str
    """published, unchanged, searched, failed, stopped, refused, usage, held_by_gate, busy, terminated."""
    message: str
    """One sentence, sometimes several lines of them."""
    code: str | None = None
    """Of the error, for programs; None where there was none."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else a program may want to know: the report, if there is one."""
    traceback: str | None = None
    """Of a defect."""

    @property
    def document(self) -> str:
        """For standard output, on one line."""
        first = {"exit_code": int(self.exit_code), "status": self.status, "message": self.message}
        first |= {} if self.code is None else {"code": self.code}
        return json_text({**first, **self.facts})


def outcome_of_report(report: "Report", catalog: str) -> Outcome:
    """The ending of a run that wrote a version."""
    version, counts = report["version"], report["counts"]
    # What is drawn on the report's page is long, and stands in report.json.
    facts = {name: value for name, value in report.items() if name not in {"series", "histograms"}}
    if report[GATE_FAILURES]:
        sentences = [f"held back: {sentence}" for sentence in report[GATE_FAILURES]]
        release = f"epithre-beam versions publish {catalog} {version}"
        sentences.append(f"The version is kept; after a look, `{release}` releases it.")
        return outcome_of_known(GateError("\n".join(sentences), **facts))
    rows = sum(counts["per_kind"].values())
    if report.get("unchanged"):
        return Outcome(
            exit_code=ExitCode.PUBLISHED,
            status="unchanged",
            message=f"Nothing changed: {version} stays in force with {of_count(rows, 'vector')}.",
            facts=facts,
        )
    sentence = f"{version} is published: {of_count(rows, 'vector')}, {counts['embedded']:,} of them new"
    if imported := report.get("imported"):
        sentence = f"{version} is published: {of_count(rows, 'vector')} from {imported['from']}"
        sentence += f", {imported['normalised']:,} of them normalised" if imported["normalised"] else ""
    sentence += f", {of_count(counts['dead'], 'dead letter')}." if counts["dead"] else "."
    return Outcome(exit_code=ExitCode.PUBLISHED, status="published", message=sentence, facts=facts)


def outcome_of_search(report: "SearchReport", output: str) -> Outcome:
    """The ending of a bulk search."""
    place, facts = f"{output.rstrip('/')}/{report['result']}", cast("dict[str, Any]", report)
    if report[GATE_FAILURES]:
        sentences = [f"held back: {sentence}" for sentence in report[GATE_FAILURES]]
        sentences.append(f"The hits are in {place} all the same, and {output}/LATEST.json does not name them.")
        return outcome_of_known(GateError("\n".join(sentences), **facts))
    asked, found = of_count(report["searched"], "query", "queries"), of_count(report["hits"], "hit")
    sentence = f"{asked} found {found} in {report['version']}: {place}/hits"
    if cut_off := report.get("cut_off"):
        asked = of_count(cut_off, "query has", "queries have")
        sentence += f"; {asked} more above search.min_score than search.k let them keep"
    if not report["hits"] and report["search"]["where"] is not None:
        sentence += "; perhaps no asset of these kinds fulfils search.where"
    sentence += f", {of_count(report['dead'], 'dead letter')}." if report["dead"] else "."
    return Outcome(exit_code=ExitCode.PUBLISHED, status="searched", message=sentence, facts=facts)


def outcome_of_error(error: Exception) -> Outcome:
    """The ending that an error amounts to; one that nobody foresaw is a defect, with its traceback."""
    error = as_os_error(error, "The storage")  # a store's driver may raise where a file is read piece by piece
    if isinstance(error, EpithreBeamError):
        return outcome_of_known(error)
    if hasattr(error, "format_message"):  # the command line's own errors
        return Outcome(exit_code=ExitCode.USAGE, status="usage", code="command_line", message=usage_sentence(error))
    if isinstance(error, ImportError):
        message = broken_install(error) or _missing_package(error)
        return Outcome(exit_code=ExitCode.USAGE, status="usage", code="installation", message=message)
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOTDIR:
            message = f"A folder is needed where a file stands{place}: name another place."
            return Outcome(exit_code=ExitCode.USAGE, status="usage", code="storage", message=message)
        message = f"The storage refused: {error.strerror or error}{place}; mend it, then do the same again."
        return Outcome(exit_code=ExitCode.FAILED, status="failed", code="storage", message=message)
    return _outcome_of_defect(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)).rstrip())


def outcome_of_known(error: EpithreBeamError) -> Outcome:
    """The ending that an error of the library amounts to."""
    if isinstance(error, DefectError):
        return _outcome_of_defect(str(error), error.facts.get("traceback"))
    status = _STATUS.get(error.exit_code, "failed")
    if isinstance(error, (SpendingLimitError, ApiPausedError)):
        status = "stopped"
    elif isinstance(error, ApiRefusedError):
        status = "refused"
    return Outcome(exit_code=error.exit_code, status=status, code=error.code, message=str(error), facts=error.facts)


def _outcome_of_defect(what: str, found_at: str | None) -> Outcome:
    message = (
        f"{what}: this is a defect of epithre-beam, please report it with its traceback; what was finished is kept."
    )
    code = DefectError.code
    return Outcome(exit_code=ExitCode.FAILED, status="failed", code=code, message=message, traceback=found_at)


def outcome_of_signal(number: int, *, is_run: bool, more: Sequence[str] = ()) -> Outcome:
    """The ending of a command that was stopped; only one that writes a version or a result has something to keep.

    Args:
        number: Of the signal.
        is_run: Whether the command is such a one.
        more: Sentences about what it has running elsewhere.
    """
    word = "Terminated" if number == signal.SIGTERM else "Interrupted"
    what = ": units that were finished are kept, run again to go on." if is_run else "."
    return Outcome(exit_code=128 + number, status="terminated", message=" ".join([word + what, *more]))


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
class Reporter:
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

    def end(self, outcome: Outcome, *, has_sentence: bool = True) -> None:
        """Says it, and nothing after it. Safe in a signal's handler: it takes no lock that the program may hold.

        Args:
            outcome: How the command ended.
            has_sentence: Whether standard error is still to be told in words.
        """
        if self.is_over:
            return
        self.is_over = True
        if self.as_json:
            _write(1, hidden(outcome.document, self.secrets))
        if not outcome.exit_code:
            return
        has_sentence = has_sentence and self.log_format is not LogFormat.JSON
        if self.log_format is not None:
            level = logging.WARNING if outcome.status == "held_by_gate" else logging.ERROR
            # Where the sentence follows, the line does not say it too.
            fields = {"exit_code": int(outcome.exit_code), "message": None if has_sentence else outcome.message}
            fields |= {
                name: value
                for name, value in outcome.facts.items()
                if name in {"version", "spent", "assets", "retry_at"}
            }
            fields |= {"code": outcome.code, "traceback": None if has_sentence else outcome.traceback}
            _write(2, line_of(outcome.status, level, fields))
        if has_sentence and outcome.traceback is not None:
            _write(2, hidden(outcome.traceback, self.secrets))
        if has_sentence:
            lines = hidden(outcome.message, self.secrets).split("\n")
            _write(2, "\n".join(f"epithre-beam: {line}" for line in lines))


def _write(descriptor: int, text: str) -> None:
    data = (without_steering(text) + "\n").encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError):  # nobody listens any more
        while data:
            data = data[os.write(descriptor, data) :]
