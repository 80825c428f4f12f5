"""Beam's own options, parsed by Beam; unknown options are errors instead of being ignored."""

import contextlib
import difflib
import io
from collections.abc import Sequence
from typing import Any

from ...configs.errors import ConfigError

_JOB_SERVERS = {"FlinkRunner", "SparkRunner", "PortableRunner", "PrismRunner"}
"""Runners whose job servers accept options that Beam's Python SDK does not know."""


def parsed_options(options: Sequence[str]) -> Any:
    """Parse options into Beam's `PipelineOptions`.

    Raises:
        ConfigError: When Beam rejects a value or does not know an option.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # for a wrong value, Beam's parser prints its usage and exits
            parsed = PipelineOptions(list(options))
            found = parsed.get_all_options(retain_unknown_options=True)
            known = set(PipelineOptions([]).get_all_options())
    except SystemExit as error:
        problem = said.getvalue().strip().rpartition("error: ")[2].rstrip(".")
        raise ConfigError(f"Beam does not accept these options: {problem}.") from error
    runner = str(found.get("runner") or "").rpartition(".")[2]
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
