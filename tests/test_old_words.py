"""Replaced words do not return to identifiers, file names and config keys."""

import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from epithre_beam.configs import CatalogConfig, RunConfig
from epithre_beam.configs.renamed_keys import RENAMED_KEYS
from epithre_beam.configs.search_schema import SearchJob

ROOT = Path(__file__).resolve().parents[1]

OLD_WORDS = {
    "budget": "rate limiter",
    "ledger": "backend of a rate limiter",
    "guards": "gates",
    "paid": "reusable, or billed",
    "carried": "reused",
    "judge": "check, or rate",
    "judged": "checked, or rated",
    "recipe": "embedding config hash",
    "prove": "verify",
    "ending": "outcome",
    "endings": "outcomes",
    "speaker": "reporter",
    "voice": "output options",
    "survey": "scan",
    "settle": "resolve",
    "settled": "resolved",
    "settling": "resolving",
    "greeting": "probe",
    "greetings": "probe requests",
    "doubled": "duplicate",
    "picture": "image",
    "pictures": "images",
    "told": "reported, or logged",
    "mend": "fix",
    "mended": "fixed",
}
"""Replaced words, with the word to use instead. Identifiers are checked word by word."""

PHRASES = ("held_back", "in_force")

ALLOWED = {
    ("held_back", "transforms/reports/report.py"): "a field of report.json, which keeps its name until the next format",
    ("held_back", "transforms/batch_search/last_step.py"): "the same in the report of a bulk search",
    ("budget", "tests/fuzz/budget.py"): "seconds that a fuzz target may take",
    ("budget", "tests/fuzz/test_damaged_files.py"): "imports it",
    ("budget", "tests/fuzz/test_fuzzed_answers.py"): "imports it",
    ("budget", "tests/fuzz/test_manifests.py"): "imports it",
    ("budget", "benchmarks/rivals/with_faiss.py"): "autofaiss calls the memory that it may use so",
}

PROSE = (
    r"in force", r"held back", r"ledgers?", r"guards?", r"recipes?", r"greetings?", r"pictures?", r"doubled",
    r"mend(?:ed|s|ing)?", r"told", r"judge[ds]?", r"reckon(?:ed|s)?", r"of the moment", r"must be such",
    r"whoever|somebody|nobody", r"issue \d+",
)  # fmt: skip
"""What comments, docstrings and messages must not say either; tests/docs/test_plain_words.py says what to write."""
ALLOWED_PROSE = {
    "configs/renamed_keys.py": "the old keys themselves",
    "index/versions/stored_names.py": "names on disk",
    "index/local/trust.py": "what users have allowed is known by the hash of this sentence",
    "benchmarks/rivals/with_pgvector.py": "the user nobody",
}
_OLD_PROSE = re.compile(rf"(?i)\b(?:{'|'.join(PROSE)})\b")
_ROOMS = ("configs/", "index/", "transforms/", "pipelines/", "epithre_beam/", "benchmarks/", "examples/")

FILES = {"tests/fuzz/budget.py"}
"""Allowed file names: the time of a fuzz target is a budget."""


def tracked() -> list[str]:
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        pytest.skip("this is not a git checkout, and git lists the files")
    return [name for name in found.stdout.splitlines() if "/golden/" not in name and (ROOT / name).is_file()]


def words_of(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def old_in(name: str) -> set[str]:
    return {word for word in OLD_WORDS if word in words_of(name)} | {
        phrase for phrase in PHRASES if phrase in name.lower()
    }


def identifiers(path: Path) -> Iterator[tuple[str, int]]:
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.NAME:
                yield token.string, token.start[0]


def test_identifiers_have_no_replaced_word() -> None:
    found = []
    for name in tracked():
        if not name.endswith(".py") or (ROOT / name).is_symlink():
            continue
        for identifier, line in identifiers(ROOT / name):
            if not identifier.startswith("test_"):
                found += [
                    f"{name}:{line}: {identifier} ({word})"
                    for word in old_in(identifier)
                    if (word, name) not in ALLOWED
                ]
    assert found == []


def test_file_names_have_no_replaced_word() -> None:
    assert [name for name in tracked() if old_in(name) and name not in FILES] == []


def test_config_keys_have_no_replaced_word() -> None:
    keys = [key for model in (RunConfig, CatalogConfig, SearchJob) for key in _keys(model.model_json_schema())]
    assert {"gates", "rate_limiter"} <= set(keys)
    assert [key for key in keys if old_in(key)] == []
    assert not {old.rpartition(".")[2] for old in RENAMED_KEYS} & set(keys)


def _keys(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for value in schema.values():
            yield from _keys(value)


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        ("_put_in_force", {"in_force"}),
        ("PictureFile", {"picture"}),
        ("HELD_BACK", {"held_back"}),
        ("spending", set()),
        ("pytestmark", set()),
        ("rate_limiter", set()),
    ],
)
def test_identifier_is_checked_word_by_word(identifier: str, expected: set[str]) -> None:
    assert old_in(identifier) == expected
