"""Help pages and messages for invalid command lines, complete on terminals of any width, without colours."""

import difflib
from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup

_NARROW = 60
"""Columns. On narrower terminals the help of an option is below it instead of next to it."""
_INDENT = 4

_Context: Any = TyperGroup.context_class  # of click, or of its copy in typer


class _Formatter(_Context.formatter_class):  # type: ignore[misc]
    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl(rows, _INDENT if self.width < _NARROW else col_max, col_spacing)


class _HelpContext(_Context):  # type: ignore[misc]
    formatter_class = _Formatter


class Commands(TyperGroup):
    """A group of commands whose help lists their help texts in full."""

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
    """The message for an invalid command line, with the most similar option and the help command.

    Args:
        error: The parser's error.
    """
    path = error.ctx.command_path if getattr(error, "ctx", None) else "epithre-beam"
    option = getattr(error, "option_name", None)
    message = " ".join(error.format_message().split())
    if option is not None and hasattr(error, "possibilities"):
        known = [name for parameter in error.ctx.command.params for name in parameter.opts] if error.ctx else []
        close = difflib.get_close_matches(option, known, n=2) or list(error.possibilities or ())
        message = f"No such option: {option}."
        if _is_beams(option, error.ctx):
            message += f" Put Beam options after `--`: {path} … -- {option}=…."
        elif close:
            message += f" Did you mean {' or '.join(close)}?"
    message = (
        message.replace("Value error, ", "")
        .replace("Input should be", "must be")
        .replace(", unable to parse string as an integer", "")
    )
    end = "" if message.endswith((".", "?", "!")) else "."
    return f"{message}{end} See `{path} --help`."


def _is_beams(option: str, context: Any) -> bool:
    """Return whether a command takes Beam options and Beam knows this one."""
    if context is None or all(parameter.name != "beam_options" for parameter in context.command.params):
        return False
    from apache_beam.options.pipeline_options import PipelineOptions  # takes a second

    return option.removeprefix("--").replace("-", "_") in PipelineOptions([]).get_all_options()
