"""Reduce a runner's error to one line.

The message of a runner can have pages: tracebacks of Python and Java, logs of other processes, gRPC status text. The
last line is rarely the cause, and may be a single bracket.
"""

import re

_LONGEST = 300
_WHERE = re.compile(r"\s*\[while running.*")
_MARGIN = re.compile(r"^(\s*\|)+\s*|^\s*Exception in thread \"[^\"]*\" |^Caused by: ")
"""Margins of exception groups, and Java's prefixes of an error's name."""
_ERROR = re.compile(r"([\w$]+[.:])*[\w$]*(Error|Exception|Failure|Exit|Interrupt|Timeout)(: .+|$)")
_FRAME = re.compile(
    r"at [\w.$/<>]+\(|File \"|Traceback \(most recent|\.\.\. \d+ more|Full log|\^+$|Driver stacktrace|Suppressed: "
    r"|(Exception|BaseException)Group: |\+[-+]"
)
_CHAIN = re.compile(r"The above exception was the direct cause|During handling of the above exception")
"""Python prints the cause first, Java prints it last."""
_DETAILS = re.compile(r'details = "((?:[^"\\]|\\.)*)"')
_STATUS = re.compile(r"status = StatusCode\.(\w+)")
_WORD = re.compile(r"[^\W\d_]{2,}")
_DOWNLOAD = re.compile(
    r".*?Unable to fetch remote (?P<what>job server|prism)\b.*? at (?P<url>\S+): (?P<why>.+?)(\. (Also|If no)\b.*|…)?$"
)


def message_of(error: BaseException) -> str:
    """Return an error's message in one line of at most 300 characters.

    The first that exists of: the details of a gRPC status; the line with the name and message of the first cause; the
    last line with at least two words; the message of the exception that this one was raised from.
    """
    found = _line_of(str(error))
    cause = error.__cause__ or error.__context__
    if not _WORD.search(found) and cause is not None:
        return message_of(cause)
    return _shortened(found) if found else type(error).__name__


def advised(message: str) -> str:
    """Return an error's message with what to do, if Beam could not download its own job server or Prism."""
    if (found := _DOWNLOAD.match(message)) is None:
        return message
    return (
        f"Beam could not download its {found['what']} from {found['url']} ({found['why']}). Start a job server "
        "yourself, and use --runner=PortableRunner --job_endpoint=HOST:PORT; see docs/engines.md."
    )


def _line_of(text: str) -> str:
    if (details := _DETAILS.findall(text)) or _STATUS.search(text):
        status = _STATUS.search(text)
        said = _line_of(details[-1].replace("\\n", "\n")) if details and details[-1].strip() else "the call failed"
        return f"{said} ({status[1]})" if status else said
    # In a chain of Python exceptions, the cause comes before the first link.
    begin, *links = _CHAIN.split(text)
    named = _named(_lines(begin)) if links else []
    lines = _lines(text)
    named = named or _named(lines)
    worded = [line for line in lines if len(_WORD.findall(line)) >= 2]
    found = [line for line in named if ": " in line] or worded or named or lines
    return found[-1] if found else ""


def _lines(text: str) -> list[str]:
    lines = (_WHERE.sub("", line.strip()) for line in text.splitlines())
    lines = (_MARGIN.sub("", line) for line in lines if not _CHAIN.match(line))
    return [line for line in lines if line and not _FRAME.match(line)]


def _named(lines: list[str]) -> list[str]:
    return [match[0] for line in lines if (match := _ERROR.match(line))]


def _shortened(line: str) -> str:
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
