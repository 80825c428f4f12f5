"""What a runner says of a failure, in the one line that says it.

A runner's message is pages: tracebacks of Python and Java, logs of other processes, a gRPC call's own form. Its last
line is seldom the one, and may be a bracket.
"""

import re

_LONGEST = 300
_WHERE = re.compile(r"\s*\[while running.*")
_ERROR = re.compile(r"(Caused by: )?([\w$]+[.:])*\w*(Error|Exception|Failure|Exit|Interrupt|Timeout)(: .+|$)")
_FRAME = re.compile(
    r"at [\w.$/<>]+\(|File \"|Traceback \(most recent|\.\.\. \d+ more|Full log|\^+$|During handling|The above"
)
_DETAILS = re.compile(r'details = "((?:[^"\\]|\\.)*)"')
_STATUS = re.compile(r"status = StatusCode\.(\w+)")
_WORD = re.compile(r"[^\W\d_]{2,}")


def message_of(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters.

    That is a gRPC call's details; else the last line that has an error's name and words, of Java's the innermost cause;
    else the last line of some words.
    """
    text = str(error)
    if details := _DETAILS.findall(text):
        status = _STATUS.search(text)
        return _shortened(f"{details[-1]} ({status[1]})" if status else details[-1])
    lines = [_WHERE.sub("", line.strip()) for line in text.splitlines()]
    lines = [line for line in lines if line and not _FRAME.match(line)]
    named = [match[0].removeprefix("Caused by: ") for line in lines if (match := _ERROR.match(line))]
    worded = [line for line in lines if len(_WORD.findall(line)) >= 2]
    found = [line for line in named if ": " in line] or worded or named or lines
    return _shortened(found[-1]) if found else type(error).__name__


def _shortened(line: str) -> str:
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
