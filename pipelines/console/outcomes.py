"""The outcome of a command: its exit code, its message, and the same as a JSON document for programs."""

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
from ...index.storage.obstacles import file_in_the_way
from ...index.storage.remote import as_os_error
from ...index.versions.layout import report_page_name
from ...index.versions.stored_names import GATE_FAILURES
from ...installs import broken_install
from .documents import json_text
from .help import usage_sentence
from .logs import LogFormat, hidden, line_of
from .screen import without_steering

if TYPE_CHECKING:
    from ...transforms.batch_search.last_step import SearchReport
    from ...transforms.reports.report import Report

_LETTERS = 3
"""Dead letters in the message of a held version."""
_STATUS = {ExitCode.USAGE: "usage", ExitCode.HELD_BY_GATE: "held_by_gate", ExitCode.BUSY: "busy"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a command."""

    exit_code: int
    status: str
    """published, unchanged, searched, failed, stopped, refused, usage, held_by_gate, busy, terminated."""
    message: str
    """For people: one or more lines."""
    code: str | None = None
    """The code of the error, for programs; None without an error."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further fields for programs: those of the report, or of the error."""
    traceback: str | None = None
    """The traceback of a defect."""

    @property
    def document(self) -> str:
        """The JSON document for standard output, on one line."""
        first = {"exit_code": int(self.exit_code), "status": self.status, "message": self.message}
        first |= {} if self.code is None else {"code": self.code}
        return json_text({**first, **self.facts})


def outcome_of_report(report: "Report", catalog: str) -> Outcome:
    """The outcome of a run that wrote a version, or left the current one."""
    version, counts = report["version"], report["counts"]
    # The data of the report's plots is long, and is in report.json.
    facts = {name: value for name, value in report.items() if name not in {"series", "histograms"}}
    facts["report"] = page_of_report(report, catalog)
    if report[GATE_FAILURES]:
        sentences = [f"held back by a gate: {sentence}" for sentence in report[GATE_FAILURES]]
        sentences += _dead_letter_lines(report)
        release = f"epithre-beam versions publish {catalog} {version}"
        sentences.append(f"The version is kept. Check {facts['report']}, then publish it with `{release}`.")
        return outcome_of_known(GateError("\n".join(sentences), **facts))
    rows = sum(counts["per_kind"].values())
    if report.get("unchanged"):
        return Outcome(
            exit_code=ExitCode.PUBLISHED,
            status="unchanged",
            message=f"Nothing changed: {version} is still the current version, with {of_count(rows, 'vector')}.",
            facts=facts,
        )
    sentence = f"{version} is published: {of_count(rows, 'vector')}, {counts['embedded']:,} of them new"
    if imported := report.get("imported"):
        sentence = f"{version} is published: {of_count(rows, 'vector')} from {imported['from']}"
        sentence += f", {imported['normalised']:,} of them normalised" if imported["normalised"] else ""
    sentence += f", {of_count(counts['dead'], 'dead letter')}." if counts["dead"] else "."
    return Outcome(exit_code=ExitCode.PUBLISHED, status="published", message=sentence, facts=facts)


def page_of_report(report: "Report", catalog: str) -> str:
    """The path or URL of the `report.html` of the version that a report describes."""
    return f"{catalog.rstrip('/')}/{report_page_name(report['version'])}"


def _dead_letter_lines(report: "Report") -> list[str]:
    """The first dead letters of a held version: a mail has nothing but the message."""
    letters = [letter for samples in report["dead_letters"]["samples"].values() for letter in samples]
    lines = [
        f"dead letter: {letter['kind']} {letter['asset_id']}: {letter['reason']}: {letter['detail']}"
        for letter in letters[:_LETTERS]
    ]
    more = report["counts"]["dead"] - len(lines)
    return [*lines, f"{of_count(more, 'more dead letter')}: see report.html."] if lines and more > 0 else lines


def outcome_of_search(report: "SearchReport", output: str) -> Outcome:
    """The outcome of a bulk search."""
    place, facts = f"{output.rstrip('/')}/{report['result']}", cast("dict[str, Any]", report)
    if report[GATE_FAILURES]:
        sentences = [f"held back by a gate: {sentence}" for sentence in report[GATE_FAILURES]]
        sentences.append(f"The hits are kept in {place}, but {output}/LATEST.json does not name them. Check them.")
        return outcome_of_known(GateError("\n".join(sentences), **facts))
    asked, found = of_count(report["searched"], "query", "queries"), of_count(report["hits"], "hit")
    sentence = f"{asked} found {found} in {report['version']}: {place}/hits"
    if cut_off := report.get("cut_off"):
        asked = of_count(cut_off, "query has", "queries have")
        sentence += f"; {asked} more hits above search.min_score than search.k allows"
    if not report["hits"] and report["search"]["where"] is not None:
        sentence += "; check search.where, which may match no asset of these kinds"
    sentence += f", {of_count(report['dead'], 'dead letter')}." if report["dead"] else "."
    return Outcome(exit_code=ExitCode.PUBLISHED, status="searched", message=sentence, facts=facts)


def outcome_of_error(error: Exception) -> Outcome:
    """The outcome of an error; an unexpected error is a defect, with its traceback."""
    error = as_os_error(error, "The storage")  # drivers of stores raise their own errors while a file is read
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
            file = file_in_the_way(error.filename) if error.filename else None
            place = f" ({file})" if file is not None else place
            message = f"A folder is needed, but there is a file{place}. Give the path of a folder."
            return Outcome(exit_code=ExitCode.USAGE, status="usage", code="storage", message=message)
        message = f"The storage failed: {error.strerror or error}{place}. Fix the cause, then run the command again."
        return Outcome(exit_code=ExitCode.FAILED, status="failed", code="storage", message=message)
    return _outcome_of_defect(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)).rstrip())


def outcome_of_known(error: EpithreBeamError) -> Outcome:
    """The outcome of an error of the library."""
    if isinstance(error, DefectError):
        return _outcome_of_defect(str(error), error.facts.get("traceback"))
    status = _STATUS.get(error.exit_code, "failed")
    if isinstance(error, (SpendingLimitError, ApiPausedError)):
        status = "stopped"
    elif isinstance(error, ApiRefusedError):
        status = "refused"
    return Outcome(exit_code=error.exit_code, status=status, code=error.code, message=str(error), facts=error.facts)


def _outcome_of_defect(what: str, found_at: str | None) -> Outcome:
    message = f"{what}: this is a defect of epithre-beam. Please report it with its traceback. Finished work is kept."
    code = DefectError.code
    return Outcome(exit_code=ExitCode.FAILED, status="failed", code=code, message=message, traceback=found_at)


def outcome_of_signal(number: int, *, is_run: bool, more: Sequence[str] = ()) -> Outcome:
    """The outcome of a command that a signal stopped.

    Args:
        number: The signal.
        is_run: Whether the command writes a version or a result, whose finished units are kept.
        more: Messages about its remote jobs.
    """
    word = "Terminated" if number == signal.SIGTERM else "Interrupted"
    what = ": finished units are kept. Run the command again to continue." if is_run else "."
    return Outcome(exit_code=128 + number, status="terminated", message=" ".join([word + what, *more]))


def _missing_package(error: ImportError) -> str:
    """The message for a missing optional package: Beam, a store's driver, or another extra."""
    if "Install the extra" in str(error):
        return str(error)
    name = (error.name or "").split(".")[0]
    extras = {"apache_beam": "beam", "duckdb": "beam", "s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure", "redis": "redis"}
    extras |= dict.fromkeys(("fastapi", "httptools", "uvicorn", "prometheus_client", "python_multipart"), "serve")
    extras |= dict.fromkeys(("sklearn", "scipy", "matplotlib"), "explore")
    extra = extras.get(name) or next((e for n, e in extras.items() if n in str(error)), None)
    if extra is None:
        return f"A package is not installed: {error}. Install it."
    command = f"pip install -c constraints.txt '.[{extra}]'"
    return f"A package is not installed: {error}. Install the extra `{extra}`, in the checkout: {command}."


@dataclass
class Reporter:
    """Reports the outcome of a command, once."""

    as_json: bool = False
    """Whether to write the JSON document to standard output."""
    log_format: LogFormat | None = None
    """The format of a run's log lines; None without log lines."""
    secrets: Collection[str] = field(default=(), repr=False)
    """Strings to hide in all output, such as the API key."""
    is_run: bool = field(default=False, init=False)
    """Whether the command keeps finished units when a signal stops it."""
    is_over: bool = field(default=False, init=False)

    def end(self, outcome: Outcome, *, has_sentence: bool = True) -> None:
        """Reports the outcome; later calls do nothing. Safe in a signal handler: it takes no lock of the program.

        Args:
            outcome: The outcome of the command.
            has_sentence: Whether to write the message to standard error.
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
            # The log line leaves out the message if it follows as plain text.
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
    with contextlib.suppress(OSError):  # the stream is closed
        while data:
            data = data[os.write(descriptor, data) :]
