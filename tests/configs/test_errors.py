"""The errors form one tree, have unique codes, and can be sent to another process."""

import ast
import pickle
import re
from pathlib import Path

import pytest

from epithre_beam import errors
from epithre_beam.configs.errors import (
    ApiRefusedError,
    ArgumentError,
    DamagedFileError,
    EpithreBeamError,
    ExitCode,
    QueryError,
    RefusedKeyError,
    SpentQuotaError,
    UnknownModelError,
    all_errors,
    error_of,
)

ROOT = Path(__file__).resolve().parents[2]
TREE = all_errors()
NOT_SHOWN_TO_USERS = {
    "BrokenAnswerError",  # an answer of the API that is not used; what comes of it is a retry or a refusal
    "_UnreadableError",  # a body that cannot be inflated; becomes the reply's `problem`
    "Fault",  # what a request to `serve` is answered
    "OutsideError",  # a redirect or a link out of `within`, which becomes a dead letter
    "RefusedError",  # what the emulator answers
    "ThriftError",  # a damaged header of a page, which becomes an UnreadableParquetError
    "UnnotedFailureError",  # what a runner passes on to the launcher, which reads the error out of it
    "Unpreparable",  # becomes a dead letter
    "UnreadableParquetError",  # becomes a SourceError with the table and the row
    "DuplicateKeyError",  # becomes a ConfigError with the file
    "YamlBombError",  # becomes a ConfigError with the file
    "AnswerError",  # goes back to the model, and becomes a dead row
    "BadItemError",
    "PromptError",  # becomes a dead row
    "SchemaError",  # what the emulator answers
    "_UnlikeError",
}


def test_codes_are_words_and_unique() -> None:
    codes = [error.code for error in TREE]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)
def test_an_error_survives_pickling_and_error_of(error: type[EpithreBeamError]) -> None:
    raised = error("units/u.parquet is damaged.", file="units/u.parquet", counts={"rows": 3})
    for found in (pickle.loads(pickle.dumps(raised)), error_of(raised.code, str(raised), raised.facts)):
        assert type(found) is error
        assert str(found) == "units/u.parquet is damaged."
        assert found.facts == {"file": "units/u.parquet", "counts": {"rows": 3}}
        assert found.exit_code is error.exit_code


def test_an_unknown_code_becomes_the_root_error() -> None:
    found = error_of("of_tomorrow", "It failed.", {"a": 1})
    assert (type(found), str(found), found.facts) == (EpithreBeamError, "It failed.", {"a": 1})


def test_refusals_by_the_api_exit_with_the_usage_code() -> None:
    for error in (RefusedKeyError, UnknownModelError, SpentQuotaError):
        assert issubclass(error, ApiRefusedError)
        assert error.exit_code is ExitCode.USAGE


def test_an_argument_error_is_a_value_error() -> None:
    assert issubclass(QueryError, ArgumentError)
    assert issubclass(ArgumentError, ValueError)
    assert QueryError("Query 0 is empty.", reason="empty_text").reason == "empty_text"
    assert DamagedFileError("u is damaged.", file="u").file == "u"


def test_all_errors_are_exported() -> None:
    assert [error.__name__ for error in TREE if getattr(errors, error.__name__, None) is not error] == []


def test_no_exception_class_is_outside_the_tree() -> None:
    """Except those that never leave the code that raises them."""
    found = set()
    for folder in ("configs", "index", "transforms", "pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ClassDef) and path != ROOT / "configs" / "errors.py":
                    bases = {ast.unparse(base) for base in node.bases}
                    if any(re.search(r"(Error|Exception)$", base) for base in bases):
                        found.add(node.name)
    assert found == NOT_SHOWN_TO_USERS


def test_the_docstring_lists_the_whole_tree() -> None:
    drawn = re.findall(r"\b[A-Z]\w+Error\b", (ROOT / "configs" / "errors.py").read_text("utf-8").split('"""')[1])
    assert {name for name in drawn if name != "ValueError"} == {error.__name__ for error in TREE}
