"""Figures: what benchmarks declare, what is stored of them, and what the pages quote."""

import argparse
import datetime
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
HELPERS = {"assets", "beam_pipelines", "clustered", "figures", "growth", "subjects"}
"""Make data, drawings or processes for the benchmarks, and store nothing."""
_REASON = r"\bsince\b|\bso that\b|: |, the default of |, for the same reason|, the `\w+`"


def load() -> ModuleType:
    """Benchmarks are programs, no package."""
    spec = importlib.util.spec_from_file_location("benchmark_figures", BENCHMARKS / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


figures = load()
DECLARED = figures.BENCHMARKS
RESULTS = figures.read_results(figures.RESULTS)
SPEED = figures.Figure(what="speed", unit="MB/s", format=",.0f", target="at least 1,000, since a night is short")


def benchmark(**fields: object) -> object:
    return figures.Benchmark(**{"command": "make bench-one", "takes": "a minute", "code": ["code"], **fields})


def result(value: float = 1234.4, commit: str = "0" * 40) -> dict[str, object]:
    return {
        "commit": commit,
        "date": "2026-11-30",
        "machine": {"cores": 2, "cpu": "a processor", "memory_gb": 16, "load_before": 3.1},
        "arguments": {"rows": 10},
        "code": ["code"],
        "figures": {"speed": {"value": value, "unit": "MB/s"}},
        "tables": {},
    }


# The repository


def test_every_benchmark_program_declares_what_it_stores() -> None:
    started = {}
    for path in sorted(BENCHMARKS.glob("*.py")):
        text = path.read_text("utf-8")
        started |= dict.fromkeys(re.findall(r'Recording\.start\("(\w+)"', text), path.stem)
        if path.stem not in HELPERS:
            assert "Recording.start(" in text, f"{path.name} stores no result"
    # index.py has one name of three, by its options
    assert set(DECLARED) == set(started) | {"index", "index_growth", "index_rivals"}
    for name, program in started.items():
        assert f"benchmarks/{program}.py" in DECLARED[name].code


@pytest.mark.parametrize("name", DECLARED)
def test_a_benchmark_declares_figures_a_command_and_code_that_exists(name: str) -> None:
    one = DECLARED[name]
    assert one.figures or one.tables
    assert [path for path in one.code if not (ROOT / path).exists() and "/results/" not in path] == []
    for figure in one.figures.values():
        assert figure.to_text(1.5)
        assert not figure.target or re.search(_REASON, figure.target), f"{figure.target!r} has no reason"
    target = re.fullmatch(r"make (\S+)", one.command)
    if target:
        assert f"\n{target[1]}:" in (ROOT / "Makefile").read_text("utf-8")
    else:
        program = one.command.split()[1]
        assert program in one.code


@pytest.mark.parametrize("name", RESULTS)
def test_a_stored_result_has_all_that_its_benchmark_declares(name: str) -> None:
    stored, one = RESULTS[name], DECLARED[name]
    assert set(stored) == {"commit", "date", "machine", "arguments", "code", "figures", "tables"}
    assert re.fullmatch(r"[0-9a-f]{40}", stored["commit"])
    assert datetime.date.fromisoformat(stored["date"])
    assert set(stored["machine"]) == {"cores", "cpu", "memory_gb", "load_before"}
    assert {key: figure["unit"] for key, figure in stored["figures"].items()} == {
        key: figure.unit for key, figure in one.figures.items()
    }
    assert set(stored["tables"]) == set(one.tables)
    assert "/" not in json.dumps(stored["arguments"])


@pytest.mark.parametrize("path", figures.pages(ROOT), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_quotes_the_stored_figures(path: Path) -> None:
    text = path.read_text("utf-8")
    assert figures.fill(text, RESULTS, DECLARED) == text, "run `make figures`"


# Pages


def test_filling_replaces_what_is_between_the_comments() -> None:
    page = "It writes <!-- figure: one.speed -->9<!-- /figure --> MB/s, <!-- figure: one.speed -->x<!-- /figure -->.\n"
    filled = figures.fill(page, {"one": result()}, {"one": benchmark(figures={"speed": SPEED})})
    assert re.sub(r"<!--.*?-->", "", filled) == "It writes 1,234 MB/s, 1,234.\n"
    assert figures.fill(filled, {"one": result()}, {"one": benchmark(figures={"speed": SPEED})}) == filled


def test_a_figure_without_a_stored_result_is_refused_with_the_command() -> None:
    page = "It writes <!-- figure: one.speed -->9<!-- /figure --> MB/s.\n"
    with pytest.raises(figures.FigureError, match=r"figure one\.speed: .*run: make bench-one"):
        figures.fill(page, {}, {"one": benchmark(figures={"speed": SPEED})})


@pytest.mark.parametrize("name", ["one.size", "two.speed", "one"])
def test_a_figure_that_is_not_declared_is_refused(name: str) -> None:
    page = f"It writes <!-- figure: {name} -->9<!-- /figure --> MB/s.\n"
    with pytest.raises(figures.FigureError, match=re.escape(f"figure {name}:")):
        figures.fill(page, {"one": result()}, {"one": benchmark(figures={"speed": SPEED})})


@pytest.mark.parametrize(
    "page",
    [
        "It writes <!-- figure: one.speed -->9 MB/s.\n",
        "It writes 9<!-- /figure --> MB/s.\n",
        "<!-- results: one -->\n",
        "It writes <!-- figure: one-speed -->9<!-- /figure --> MB/s.\n",
    ],
)
def test_a_marker_without_its_pair_is_refused(page: str) -> None:
    with pytest.raises(figures.FigureError, match="needs its opening and its end"):
        figures.fill(page, {"one": result()}, {"one": benchmark(figures={"speed": SPEED})})


def test_a_figure_at_the_start_of_a_line_is_refused_because_markdown_ends_there() -> None:
    page = "It writes\n<!-- figure: one.speed -->9<!-- /figure --> MB/s.\n"
    with pytest.raises(figures.FigureError, match="begins with a comment"):
        figures.fill(page, {"one": result()}, {"one": benchmark(figures={"speed": SPEED})})


def test_results_show_figures_targets_machine_and_load() -> None:
    page = "<!-- results: one -->\n<!-- /results -->\n"
    filled = figures.fill(page, {"one": result()}, {"one": benchmark(figures={"speed": SPEED})})
    assert "| speed | 1,234 MB/s | at least 1,000, since a night is short |" in filled
    assert "30 November 2026 by `make bench-one` (rows=10) on 2 cores (a processor, 16 GB)" in filled
    assert "load 3.1" in filled
    assert figures.fill(filled, {"one": result()}, {"one": benchmark(figures={"speed": SPEED})}) == filled


def test_results_that_are_not_stored_say_what_to_run() -> None:
    page = "<!-- results: one -->\n| speed | 9 MB/s |\n<!-- /results -->\n"
    filled = figures.fill(page, {}, {"one": benchmark(figures={"speed": SPEED})})
    assert "Run `make bench-one` (a minute)" in filled
    assert "at least 1,000" in filled
    assert "9 MB/s" not in filled


@pytest.mark.parametrize("rows", [[], [["1", "9"]]])
def test_results_show_tables_that_have_rows(rows: list[list[str]]) -> None:
    stored = {**result(), "tables": {"Passes": {"columns": ["pass", "MB/s"], "rows": rows}}}
    one = benchmark(figures={"speed": SPEED}, tables=["Passes"])
    filled = figures.fill("<!-- results: one -->\n<!-- /results -->\n", {"one": stored}, {"one": one})
    assert ("Passes:\n\n| pass | MB/s |\n| --- | --- |\n| 1 | 9 |" in filled) == bool(rows)
    assert ("Passes" in filled) == bool(rows)


def test_a_benchmark_prints_its_figures_and_stores_them_or_says_why_not(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "reuse.py"), "--groups", "1", "--results", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"vectors read and selected, median of four passes: [\d,]+ MB/s", ran.stdout)
    path = tmp_path / "reuse.json"
    if path.exists():
        assert json.loads(path.read_text("utf-8"))["arguments"] == {"groups": 1}
    else:
        assert "not stored, since" in ran.stderr


# Recording and status, in a repository of their own


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    ran = subprocess.run(["git", "-C", str(root), *who, *arguments], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "code").mkdir(parents=True)
    (root / "code" / "a.py").write_text("a = 1\n")
    (root / "page.md").write_text("A page.\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "Begin")
    return root


@pytest.fixture
def recorded(repository: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    monkeypatch.setattr(figures, "ROOT", repository)
    monkeypatch.setattr(figures, "BENCHMARKS", {"one": benchmark(figures={"speed": SPEED})})
    return argparse.Namespace(results=repository / "results", rows=10, folder=None, work=Path("/somewhere"))


def test_a_recording_stores_figures_commit_date_machine_arguments_and_code(
    repository: Path, recorded: argparse.Namespace
) -> None:
    figures.Recording.start("one", recorded).store({"speed": 1234.5678})
    stored = json.loads((repository / "results" / "one.json").read_text("utf-8"))
    assert stored["figures"] == {"speed": {"value": 1234.6, "unit": "MB/s"}}
    assert stored["commit"] == git(repository, "rev-parse", "HEAD")
    assert stored["arguments"] == {"rows": 10}
    assert stored["code"] == ["code"]
    assert stored["machine"]["cores"] >= 1
    assert datetime.date.fromisoformat(stored["date"])


@pytest.mark.parametrize("name", ["a.py", "new.py"])
def test_code_that_is_not_committed_is_measured_but_not_stored(
    repository: Path, recorded: argparse.Namespace, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (repository / "code" / name).write_text("a = 2\n")
    figures.Recording.start("one", recorded).store({"speed": 1234.5678})
    said = capsys.readouterr()
    assert "speed: 1,235 MB/s" in said.out
    assert f"not stored, since code/{name} is not committed" in said.err
    assert not (repository / "results").exists()


def test_a_part_of_the_figures_is_not_stored(
    repository: Path, recorded: argparse.Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = figures.Recording.start("one", recorded)
    recording.store({})
    assert "not stored, since it lacks speed" in capsys.readouterr().err
    assert not (repository / "results").exists()
    with pytest.raises(figures.FigureError, match=r"not declared in .*: size"):
        recording.store({"size": 1.0})


def test_status_lists_results_whose_code_has_changed(repository: Path) -> None:
    benchmarks = {"one": benchmark(), "two": benchmark(code=["code/b.py"]), "three": benchmark()}
    results = {name: result(commit=git(repository, "rev-parse", "HEAD")) for name in ("one", "two")}
    results["two"]["code"] = ["code/b.py"]

    def reported() -> list[str]:
        return [line.split(":")[1].split(",")[0].strip() for line in figures.status(repository, results, benchmarks)]

    (repository / "page.md").write_text("Another page.\n")
    assert reported() == ["up to date", "up to date", "nothing is stored; run"]
    (repository / "code" / "a.py").write_text("a = 2\n")
    assert reported() == ["out of date", "up to date", "nothing is stored; run"]
    git(repository, "commit", "-q", "-a", "-m", "Go on")
    (repository / "code" / "b.py").write_text("b = 1\n")
    assert reported() == ["out of date", "out of date", "nothing is stored; run"]
    (line, *_) = figures.status(repository, results, benchmarks)
    assert "2 files changed" in line
    assert "code/a.py" in line
    assert "run: make bench-one (a minute)" in line


def test_status_says_that_a_shallow_clone_lacks_the_commit(repository: Path, tmp_path: Path) -> None:
    measured = git(repository, "rev-parse", "HEAD")
    (repository / "page.md").write_text("Another page.\n")
    git(repository, "commit", "-q", "-a", "-m", "Go on")
    git(tmp_path, "clone", "-q", "--depth", "1", repository.as_uri(), "shallow")
    (line,) = figures.status(tmp_path / "shallow", {"one": result(commit=measured)}, {"one": benchmark()})
    assert line == f"one: unknown, since commit {measured[:10]} is not in this clone; git fetch --unshallow"
    (line,) = figures.status(repository, {"one": result(commit="f" * 40)}, {"one": benchmark()})
    assert line.startswith("one: unknown, since commit ffffffffff is not in this clone; run: make bench-one")


def test_status_works_without_a_repository_and_without_installed_packages(tmp_path: Path) -> None:
    (line,) = figures.status(tmp_path, {"one": result()}, {"one": benchmark()})
    assert line.startswith("one: unknown, since this is no git repository")
    command = [sys.executable, "-I", "-S", str(BENCHMARKS / "figures.py"), "status"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(said.splitlines()) == len(DECLARED)
