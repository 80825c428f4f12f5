"""Help pages and wrong command lines: whole on a terminal of any width, without colours, each mistake one sentence."""

import difflib
from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup

_NARROW = 60
"""Columns. Below, what an option is for stands under it instead of beside it."""
_INDENT = 4

_Context: Any = TyperGroup.context_class  # of click, or of what typer has in its place


class _Formatter(_Context.formatter_class):  # type: ignore[misc]
    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl(rows, _INDENT if self.width < _NARROW else col_max, col_spacing)


class _HelpContext(_Context):  # type: ignore[misc]
    formatter_class = _Formatter


class Commands(TyperGroup):
    """A group of commands, each listed with all of its first line."""

    context_class = _HelpContext

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            command.context_class = _HelpContext
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        named = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help or "") for name, command in named])


def usage_sentence(error: Any) -> str:
    """What is wrong with a command line, in one sentence; the nearest option or command; and where to read on.

    Args:
        error: As the parser raised it.
    """
    path = error.ctx.command_path if getattr(error, "ctx", None) else "epithre-beam"
    option = getattr(error, "option_name", None)
    message = " ".join(error.format_message().split())
    if option is not None and hasattr(error, "possibilities"):
        known = [name for parameter in error.ctx.command.params for name in parameter.opts] if error.ctx else []
        close = difflib.get_close_matches(option, known, n=2) or list(error.possibilities or ())
        message = f"No such option: {option}."
        message += f" Did you mean {' or '.join(close)}?" if close else ""
    message = (
        message.replace("Value error, ", "")
        .replace("Input should be", "must be")
        .replace(", unable to parse string as an integer", "")
    )
    end = "" if message.endswith((".", "?", "!")) else "."
    return f"{message}{end} See `{path} --help`."
