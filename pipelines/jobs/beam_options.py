"""Beam's own options and the runner, checked before anything is listed: unknown ones are errors, not ignored."""

import contextlib
import difflib
import importlib
import io
import socket
from collections.abc import Sequence
from typing import Any

from ...configs.errors import ConfigError, RunnerError

_JOB_SERVERS = {"FlinkRunner", "SparkRunner", "PortableRunner", "PrismRunner"}
"""Runners whose job servers accept options that Beam's Python SDK does not know."""
_OFFERED = "FnApiRunner, BundleBasedDirectRunner, PortableRunner, PrismRunner, FlinkRunner, SparkRunner, DataflowRunner"
_CONNECT_S = 5.0


def parsed_options(options: Sequence[str]) -> Any:
    """Parse options into Beam's `PipelineOptions`.

    Raises:
        ConfigError: When Beam rejects a value, or does not know an option or the runner.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # for a wrong value, Beam's parser prints its usage and exits
            found = PipelineOptions(list(options)).get_all_options(retain_unknown_options=True)
            runner = str(found.get("runner") or "")
            _check_runner(runner)  # imports it: the module of a runner may declare options, as Dask's does
            parsed = PipelineOptions(list(options))
            parsed.get_all_options(retain_unknown_options=True)
            known = _flags() | set(PipelineOptions([]).get_all_options())
    except SystemExit as error:
        problem = said.getvalue().strip().rpartition("error: ")[2].rstrip(".")
        raise ConfigError(f"Beam does not accept these options: {problem}.") from error
    runner = runner.rpartition(".")[2]
    sentences = []
    for option in options:
        name = option.removeprefix("--").partition("=")[0]
        if name in known or name.replace("-", "_") in known or name.removeprefix("no_") in known:
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if close:
            sentences.append(f"--{name} is not an option of Beam. Did you mean --{close[0]}?")
        elif runner not in _JOB_SERVERS:
            sentences.append(f"--{name} is not an option of Beam or of {runner}. Remove it.")
    if sentences:
        raise ConfigError("\n".join(sentences))
    return parsed


def _flags() -> set[str]:
    """The options that Beam and the imported modules declare, as they are written: a value may have another name."""
    from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    parser = _BeamArgumentParser(add_help=False, conflict_handler="resolve")
    classes = [PipelineOptions]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        if "_add_argparse_args" in cls.__dict__:
            cls._add_argparse_args(parser)
    actions = parser._actions  # noqa: SLF001 - argparse has no public list of them
    return {flag.lstrip("-") for action in actions for flag in action.option_strings}


def check_job_server(options: Any) -> None:
    """Check that the job server in Beam's options listens: Beam itself would wait for it for minutes, silently.

    Args:
        options: Beam's `PipelineOptions`.

    Raises:
        ConfigError: When the address is not HOST:PORT.
        RunnerError: When nothing accepts a connection there within 5 s.
    """
    from apache_beam.options.pipeline_options import PortableOptions

    endpoint = options.view_as(PortableOptions).job_endpoint
    if not endpoint or endpoint == "embed":  # Beam starts a job server itself
        return
    host, _, port = endpoint.rpartition(":")
    if not host or not (port.isdecimal() and port.isascii() and int(port) <= 65_535):
        raise ConfigError(f"runner: --job_endpoint must be HOST:PORT, got {endpoint!r}. Correct it.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise RunnerError(
            f"runner: no job server answers at {endpoint} ({error.strerror or error}). Start it, or correct "
            "--job_endpoint."
        ) from error


def _check_runner(name: str) -> None:
    """Find the class of a runner, by Beam's rules for its name.

    Raises:
        ConfigError: When there is no such class, or its module cannot be imported.
    """
    from apache_beam.options.pipeline_options import StandardOptions

    paths = {path.rpartition(".")[2].lower(): path for path in StandardOptions.ALL_KNOWN_RUNNERS}
    path = paths.get(name.lower()) or paths.get(f"{name.lower()}runner") or name
    module, _, cls = path.rpartition(".")
    if not module:
        close = difflib.get_close_matches(name.lower(), paths, n=1, cutoff=0.8)
        hint = f"Did you mean {paths[close[0]].rpartition('.')[2]}?" if close else f"Use one of {_OFFERED}."
        raise ConfigError(f"runner: {name!r} is not a runner of Beam. {hint}")
    try:
        getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"runner: {name!r} cannot be imported ({error}). Correct the name, or install it.") from error
