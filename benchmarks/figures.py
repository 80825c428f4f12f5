"""Figures: declared in `declared.toml`, stored in `results/`, quoted in the pages.

    python benchmarks/figures.py fill      # writes the stored figures into the pages (`make figures`)
    python benchmarks/figures.py status    # lists results whose measured code has changed (`make bench-status`)

A benchmark calls `Recording.start` before it measures and `store` after it. A page quotes a figure between

    <!-- figure: main_job.time_ratio -->2.4<!-- /figure -->

and shows all of a benchmark (targets, figures, tables, when and where it was measured) between

    <!-- results: main_job -->
    <!-- /results -->

Nothing between the comments is written by hand. `fill` needs no git and no installed package, `status` needs git.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

_BUSY = 0.5
"""The load from which on a machine is not idle."""
_FIGURE = re.compile(r"<!-- figure: (?P<name>[\w.]+) -->(?P<text>.*?)<!-- /figure -->", re.DOTALL)
_BLOCK = re.compile(r"<!-- results: (?P<name>\w+) -->\n(?P<text>.*?)<!-- /results -->", re.DOTALL)
_MARK = re.compile(r"<!-- /?(?:figure|results)\b")


class FigureError(Exception):
    """A page or a benchmark that does not fit what is declared or stored."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that a benchmark measures."""

    what: str
    unit: str = ""
    """As it follows the number; empty for a count, and for a share whose format has a percent sign."""
    format: str = ".1f"
    """How it is rounded wherever it is quoted: a format specification of Python's."""
    target: str = ""
    """What it should be, and why."""

    def to_text(self, value: float) -> str:
        return format(value, self.format)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What one stored result holds, and how it is measured again."""

    command: str
    takes: str
    """Wall time on two idle cores."""
    code: list[str]
    """Files and folders, from the top of the repository, whose code it measures; its own program among them."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    """Titles of the tables that it stores."""


def read_declared(path: Path) -> dict[str, Benchmark]:
    """The benchmarks by the names of their results."""
    found = {}
    for name, fields in tomllib.loads(path.read_text("utf-8")).items():
        figures = {key: Figure(**figure) for key, figure in fields.pop("figures", {}).items()}
        found[name] = Benchmark(figures=figures, **fields)
    return found


BENCHMARKS = read_declared(ROOT / "benchmarks" / "declared.toml")


@dataclass(frozen=True)
class Table:
    """Rows of cells that are rounded already."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# Measuring


def add_results_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the result is stored, as NAME.json")


class Recording:
    """One run of a benchmark. Its result is stored only if the measured code is that of a commit."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self._name = name
        self._benchmark = BENCHMARKS[name]
        self._path = options.results / f"{name}.json"
        # Paths say where somebody's files are, not what was measured.
        given = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
        self._arguments = {key: value for key, value in given.items() if value is not None and value is not False}
        self._machine = read_machine()
        self._date = datetime.datetime.now(datetime.UTC).date().isoformat()
        self._commit = _git(ROOT, "rev-parse", "HEAD")
        changed = changed_since("HEAD", self._benchmark.code, ROOT) if self._commit else []
        self._problem = ""
        if not self._commit:
            self._problem = "this is no git repository"
        elif changed:
            self._problem = f"{', '.join(changed[:3])} {'is' if len(changed) == 1 else 'are'} not committed"
        load = self._machine["load_before"]
        if load >= _BUSY:
            print(f"{name}: the load is {load}, so seconds are not those of an idle machine", file=sys.stderr)
        if self._problem:
            print(f"{name}: {self._problem}, so the result will not be stored", file=sys.stderr, flush=True)

    @classmethod
    def start(cls, name: str, options: argparse.Namespace) -> "Recording":
        """Notes commit, machine and load, before anything is measured.

        `options` has `results` (see `add_results_option`) and what else the program was called with.
        """
        return cls(name, options)

    def store(self, figures: Mapping[str, float], tables: Mapping[str, Table] | None = None) -> None:
        """Prints the figures, and writes them if all were measured and the code is that of the commit.

        Raises:
            FigureError: a figure or a table is not declared.
        """
        tables = tables or {}
        wanted = self._benchmark.figures
        if odd := (set(figures) - set(wanted)) | (set(tables) - set(self._benchmark.tables)):
            raise FigureError(f"{self._name}: not declared in benchmarks/declared.toml: {', '.join(sorted(odd))}")
        missing = (set(wanted) - set(figures)) | (set(self._benchmark.tables) - set(tables))
        problem = self._problem or (f"it lacks {', '.join(sorted(missing))}" if missing else "")
        for name, value in figures.items():
            target = f"   (target: {wanted[name].target})" if wanted[name].target else ""
            print(f"{wanted[name].what}: {wanted[name].to_text(value)} {wanted[name].unit}{target}")
        for title, table in tables.items():
            print(f"\n{title}\n\n{table.to_markdown()}")
        if problem:
            print(f"\n{self._name}: not stored, since {problem}", file=sys.stderr, flush=True)
            return
        result = {
            "commit": self._commit,
            "date": self._date,
            "machine": self._machine,
            "arguments": self._arguments,
            "code": list(self._benchmark.code),
            "figures": {
                name: {"value": _significant(value), "unit": wanted[name].unit} for name, value in figures.items()
            },
            "tables": {title: {"columns": table.columns, "rows": table.rows} for title, table in tables.items()},
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"\nstored as {self._path}; `make figures` writes it into the pages", file=sys.stderr, flush=True)


def _significant(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.5g}")


def read_machine() -> dict[str, Any]:
    """Cores, processor, memory, and how busy it is already; nothing that names the machine."""
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)):
        model = found[1].strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count() or 1,
        "cpu": model,
        "memory_gb": round(memory / 1e9),
        "load_before": round(os.getloadavg()[0], 1),
    }


# Quoting


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The stored results by their names."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}


def fill(text: str, results: Mapping[str, Any], benchmarks: Mapping[str, Benchmark]) -> str:
    """A page with the stored figures in place of whatever is between its markers.

    Raises:
        FigureError: a marker is malformed, or names a figure that is not stored.
    """

    def figure(match: re.Match[str]) -> str:
        name = match["name"]
        line = text[: match.start()].rpartition("\n")[2]
        if not line.strip():
            raise FigureError(f"figure {name}: a line that begins with a comment is HTML; put a word before it")
        benchmark, _, key = name.partition(".")
        stored = results.get(benchmark, {}).get("figures", {}).get(key)
        if stored is None or benchmark not in benchmarks or key not in benchmarks[benchmark].figures:
            raise FigureError(f"figure {name}: no result has it{_how(benchmark, benchmarks)}")
        return f"<!-- figure: {name} -->{benchmarks[benchmark].figures[key].to_text(stored['value'])}<!-- /figure -->"

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in benchmarks:
            raise FigureError(f"results {name}: there is no such benchmark")
        shown = _to_markdown(benchmarks[name], results.get(name))
        return f"<!-- results: {name} -->\n\n{shown}\n\n<!-- /results -->"

    marks = len(_MARK.findall(text))
    pairs = len(_FIGURE.findall(text)) + len(_BLOCK.findall(text))
    if marks != 2 * pairs:
        raise FigureError(f"{marks} comments of figures make {pairs} pairs; each needs its opening and its end")
    return _BLOCK.sub(block, _FIGURE.sub(figure, text))


def _how(name: str, benchmarks: Mapping[str, Benchmark]) -> str:
    return f"; run: {benchmarks[name].command}" if name in benchmarks else ""


def _to_markdown(benchmark: Benchmark, result: Mapping[str, Any] | None) -> str:
    targets = any(figure.target for figure in benchmark.figures.values())
    if result is None:
        reported = f"There is no stored result. Run `{benchmark.command}` ({benchmark.takes}), then `make figures`."
        if not targets:
            return reported
        rows = [(figure.what, figure.target) for figure in benchmark.figures.values() if figure.target]
        return f"{reported}\n\n{Table(('figure', 'target'), rows).to_markdown()}"
    parts = [_measured(benchmark, result)]
    rows = []
    for key, figure in benchmark.figures.items():
        value = f"{figure.to_text(result['figures'][key]['value'])} {figure.unit}".strip()
        rows.append((figure.what, value, figure.target) if targets else (figure.what, value))
    columns = ("figure", "measured", "target") if targets else ("figure", "measured")
    if rows:
        parts.append(Table(columns, rows).to_markdown())
    for title, table in result["tables"].items():
        if not table["rows"]:
            continue
        parts += [f"{title}:", Table(table["columns"], table["rows"]).to_markdown()]
    return "\n\n".join(parts)


def _measured(benchmark: Benchmark, result: Mapping[str, Any]) -> str:
    date, machine = datetime.date.fromisoformat(result["date"]), result["machine"]
    load = machine["load_before"]
    shared = f"which other work shared (load {load} before the run)" if load >= _BUSY else "which did nothing else"
    arguments = ", ".join(f"{key}={value}" for key, value in result["arguments"].items())
    return (
        f"Measured on {date.day} {date:%B %Y} by `{benchmark.command}`{f' ({arguments})' if arguments else ''} on "
        f"{machine['cores']} cores ({machine['cpu']}, {machine['memory_gb']} GB), {shared}; "
        f"commit `{result['commit'][:10]}`."
    )


def pages(root: Path) -> list[Path]:
    return sorted([*root.glob("*.md"), *root.glob("docs/**/*.md")])


# Status


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails or is not there."""
    try:
        ran = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


def changed_since(commit: str, code: Sequence[str], root: Path) -> list[str]:
    """Files below these paths that the work tree has otherwise than the commit, new ones included."""
    changed = _git(root, "diff", "--name-only", "--no-ext-diff", commit, "--", *code)
    new = _git(root, "ls-files", "--others", "--exclude-standard", "--", *code)
    if changed is None or new is None:
        raise FigureError(f"git cannot compare the work tree with {commit}")
    return sorted({*changed.splitlines(), *new.splitlines()})


def status(root: Path, results: Mapping[str, Any], benchmarks: Mapping[str, Benchmark]) -> list[str]:
    """A line for each benchmark: whether its result is of today's code, and what to run if not."""
    lines = []
    for name, benchmark in benchmarks.items():
        run = f"run: {benchmark.command} ({benchmark.takes})"
        result = results.get(name)
        if result is None:
            lines.append(f"{name}: nothing is stored; {run}")
            continue
        commit = result["commit"]
        if _git(root, "rev-parse", "--git-dir") is None:
            lines.append(f"{name}: unknown, since this is no git repository; measured at {commit[:10]}")
        elif _git(root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
            fetch = "git fetch --unshallow" if _git(root, "rev-parse", "--is-shallow-repository") == "true" else run
            lines.append(f"{name}: unknown, since commit {commit[:10]} is not in this clone; {fetch.strip()}")
        elif changed := changed_since(commit, sorted({*benchmark.code, *result["code"]}), root):
            more = ", …" if len(changed) > 2 else ""
            files = f"{len(changed)} file{'s' if len(changed) > 1 else ''} changed since {commit[:10]}"
            lines.append(f"{name}: out of date, {files} ({', '.join(changed[:2])}{more}); {run}")
        else:
            lines.append(f"{name}: up to date, measured on {result['date']} at {commit[:10]}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fill", "status"))
    options = parser.parse_args()
    results = read_results(RESULTS)
    if options.what == "status":
        print("\n".join(status(ROOT, results, BENCHMARKS)))
        return
    wrong = []
    for path in pages(ROOT):
        text = path.read_text("utf-8")
        try:
            filled = fill(text, results, BENCHMARKS)
        except FigureError as error:
            wrong.append(f"{path.relative_to(ROOT)}: {error}")
            continue
        if filled != text:
            path.write_text(filled, "utf-8")
            print(f"{path.relative_to(ROOT)} has new figures")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
