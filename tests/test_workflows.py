"""GitHub workflows and commit hooks use only targets and programs that exist in this repository."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):(?!=)", MAKEFILE, re.MULTILINE))
CI = (ROOT / ".ci" / "run").read_text("utf-8")


def read(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text("utf-8"))
    assert isinstance(found, dict)
    return {"on" if key is True else key: value for key, value in found.items()}  # YAML 1.1 takes `on` for a boolean


def commands(text: str) -> set[str]:
    """Return the make targets in a script."""
    return {
        target
        for words in re.findall(r"(?:^|[(&|;]\s*|\bsudo )make ((?:[a-z-]+ ?)+)", text, re.MULTILINE)
        for target in words.split()
    }


def steps() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.name}, {name}", step)
        for path in WORKFLOWS
        for name, job in read(path)["jobs"].items()
        for step in job["steps"]
    ]


def test_there_is_a_workflow() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_has_valid_form(path: Path) -> None:
    workflow = read(path)
    assert set(workflow) <= {"name", "on", "permissions", "concurrency", "env", "defaults", "jobs"}
    assert workflow["permissions"] == {"contents": "read"}
    assert {"push", "pull_request"} <= set(workflow["on"])
    for name, job in workflow["jobs"].items():
        assert set(job) <= {
            *("name", "runs-on", "timeout-minutes", "strategy", "container", "env", "steps", "needs", "if")
        }, name
        assert job["runs-on"].startswith("ubuntu-"), name
        assert isinstance(job["timeout-minutes"], int), name
        assert job["steps"][0]["uses"].startswith("actions/checkout@"), name


@pytest.mark.parametrize(("place", "step"), steps())
def test_step_uses_pinned_action_or_existing_target(place: str, step: dict[str, Any]) -> None:
    assert set(step) <= {"name", "uses", "with", "run", "if", "env"}, place
    assert ("uses" in step) != ("run" in step), place
    assert "uses" not in step or re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]), place
    assert commands(step.get("run", "")) <= TARGETS, place
    for script in re.findall(r"(?:^|\s)(\.ci/\S+)", step.get("run", "")):
        assert os.access(ROOT / script, os.X_OK), place


def test_a_workflow_needs_no_secret() -> None:
    for path in WORKFLOWS:
        assert "secrets." not in path.read_text("utf-8")


def test_matrix_expressions_name_existing_keys() -> None:
    for path in WORKFLOWS:
        for name, job in read(path)["jobs"].items():
            named = set(re.findall(r"matrix\.([\w-]+)", yaml.safe_dump(job["steps"])))
            assert named == set(job.get("strategy", {}).get("matrix", {})), name


def test_ci_runs_lint_types_packaging_and_all_tests() -> None:
    (parts,) = re.findall(r"^test-all: (.+)$", MAKEFILE, re.MULTILINE)
    assert {*parts.split(), "lint", "types", "wheel", "airflow"} == commands(CI)
    assert commands(CI) <= TARGETS
    assert any(step.get("run") == ".ci/run" for _, step in steps())


def test_parts_of_test_all_cover_every_marker() -> None:
    """A test without the marker `alone` is quick, slow or a fuzz target."""
    selected = dict(
        re.findall(r"^(test[a-z-]*): .*\n\t\$\(PYTEST\)[^\n]*? -m (\"[^\"]+\"|\w+)", MAKEFILE, re.MULTILINE)
    )
    assert selected["test"] == '"not slow and not fuzz and not alone"'
    assert selected["test-slow"] == '"(slow or fuzz) and not alone"'
    assert selected["test-alone"] == "alone"


def test_phony_list_matches_make_targets() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == TARGETS


def test_hooks_run_programs_of_the_environment() -> None:
    config = read(ROOT / ".pre-commit-config.yaml")
    (local,) = (repo for repo in config["repos"] if repo["repo"] == "local")
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["dev"]
    programs = {re.match(r"[\w-]+", requirement)[0] for requirement in dev}  # type: ignore[index]
    for hook in local["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].split()[0].removeprefix(".venv/bin/") in programs
    assert {hook["id"] for hook in local["hooks"]} == {"ruff-check", "ruff-format", "mypy"}
    kept = re.compile(config["exclude"])
    golden = [path for path in ROOT.glob("tests/**/golden/**/*") if path.is_file()]
    assert golden
    assert all(kept.search(path.relative_to(ROOT).as_posix()) for path in golden)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_form_has_required_fields(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids) > 0
    assert all(field["type"] in {"input", "textarea", "dropdown", "checkboxes"} for field in fields)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_security_policy_is_linked() -> None:
    for name in ("README.md", ".github/ISSUE_TEMPLATE/bug_report.yml", "CONTRIBUTING.md"):
        assert "SECURITY.md" in (ROOT / name).read_text("utf-8"), name
