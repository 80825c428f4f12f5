r"""Escapes terminal control characters in all output of the program.

Ids, texts and server messages are untrusted, and a terminal executes control sequences in what is printed. So control
characters, except line feeds and tabs, and characters that change the writing direction become `\uXXXX` on standard
output and standard error; JSON parsers read that as the original character. `Screen` draws colours and progress, and
escapes texts before it adds its own sequences. `outcomes` writes to the descriptors, through the same function.
"""

import os
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

_NARROW = 60
"""Columns. On narrower terminals tables are not drawn."""
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069]")


def without_steering(text: str) -> str:
    r"""The text with each character that controls a terminal as `\uXXXX`."""
    return _STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class SafeStream:
    """A text stream that escapes terminal control characters."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            self.stream.write(without_steering(text))
        except BrokenPipeError:
            _write_to_nothing(self.stream)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _write_to_nothing(stream: TextIO) -> None:
    """Discards further output: the reader, such as `head`, closed the pipe, which is no failure."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


def guard_output() -> None:
    """Escapes terminal control characters in what this process prints to standard output and standard error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, SafeStream):
            setattr(sys, name, SafeStream(stream))


class Screen(Console):
    """A console with colours and progress that escapes terminal control characters in texts.

    Args:
        stderr: Whether to write to standard error instead of standard output.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        # With NO_COLOR rich still uses bold and dim, which some terminals show as colours.
        is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") in {"dumb", "unknown"}
        super().__init__(
            file=cast("TextIO", stream.stream if isinstance(stream, SafeStream) else stream),
            color_system=None if is_plain else "auto",
        )

    def on_broken_pipe(self) -> None:
        _write_to_nothing(cast("TextIO", self.file))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None:
                segment = Segment(without_steering(segment.text), segment.style)  # noqa: PLW2901
            yield segment


def print_table(console: Console, table: Table) -> None:
    """Prints a table; on a narrow terminal one line per cell, so that nothing is cut off."""
    if console.width >= _NARROW:
        console.print(table)
        return
    if table.title:
        console.print(table.title, soft_wrap=True)
    names = [str(column.header) for column in table.columns]
    for first, *cells in zip(*(column.cells for column in table.columns), strict=True):
        console.print(first, soft_wrap=True)
        for name, cell in zip(names[1:], cells, strict=True):
            console.print(f"  {name}:", cell, highlight=False, soft_wrap=True)
