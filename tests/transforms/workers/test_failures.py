"""The failure of a worker reaches the launcher unchanged, and reporting it never hides it."""

from pathlib import Path

import pytest

from epithre_beam.configs.errors import (
    DefectError,
    EpithreBeamError,
    SpendingLimitError,
    UnwritableError,
    all_errors,
)
from epithre_beam.transforms.workers.failures import UnnotedFailureError, as_known, failure_in, failure_of, note_failure
from epithre_beam.transforms.workers.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(url=str(tmp_path / "c"), version="000001-x")


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_no_failure_without_a_failed_worker(run: RunFolder) -> None:
    assert failure_of(run) is None


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.code)
def test_every_library_error_keeps_type_message_and_facts(run: RunFolder, kind: type[Exception]) -> None:
    facts = {"spent": {"requests": 3, "cost": None}, "reason": "missing"}
    note_failure(run, kind("It is full.", **facts))
    found = failure_of(run)
    assert type(found) is kind
    assert (str(found), found.facts) == ("It is full.", facts)


def test_facts_that_are_not_json_become_text(run: RunFolder) -> None:
    note_failure(run, SpendingLimitError("Enough.", place=Path("/a")))
    found = failure_of(run)
    assert isinstance(found, EpithreBeamError)
    assert found.facts["place"] == "/a"


def test_failure_with_file_name_that_is_not_utf8_is_reported(run: RunFolder) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    note_failure(run, raised(FileNotFoundError(2, "No such file", name)))
    found = failure_of(run)
    assert isinstance(found, UnwritableError)
    assert name in str(found)


def test_storage_error_is_reported_with_its_file(run: RunFolder) -> None:
    with pytest.raises(OSError, match="directory") as caught:
        Path(run.url, "no", "such").read_bytes()
    note_failure(run, caught.value)
    found = failure_of(run)
    assert isinstance(found, UnwritableError)
    assert f"catalog {run.url!r} cannot be written (No such file or directory: {run.url}/no/such)" in str(found)


def test_other_exception_becomes_defect_with_workers_traceback(run: RunFolder) -> None:
    note_failure(run, raised(KeyError("row")))
    found = failure_of(run)
    assert isinstance(found, DefectError)
    assert str(found) == "KeyError: 'row'"
    assert found.facts["traceback"].startswith("Traceback")
    assert "in raised" in found.facts["traceback"]
    assert found.facts["traceback"].endswith("KeyError: 'row'")


def test_library_error_is_returned_unchanged(run: RunFolder) -> None:
    error = SpendingLimitError("Enough.")
    assert as_known(run, error) is error


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"3", b"{}", b'{"code": "api"}', b'{"code": 1, "message": 1}'])
def test_truncated_note_is_ignored(run: RunFolder, note: bytes) -> None:
    note_failure(run, KeyError("row"))
    run.store().write(run.name("failure.json"), note)
    assert failure_of(run) is None


def test_unknown_error_code_becomes_the_base_error(run: RunFolder) -> None:
    run.store().write(run.name("failure.json"), b'{"code": "not_yet_known", "message": "Later.", "facts": {}}')
    found = failure_of(run)
    assert type(found) is EpithreBeamError
    assert str(found) == "Later."


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.code)
def test_unwritten_failure_is_found_in_runners_error_text(tmp_path: Path, kind: type[Exception]) -> None:
    (tmp_path / "c").touch()
    run = RunFolder(url=str(tmp_path / "c"), version="000001-x")
    facts = {"reason": "missing", "rows": [1, None], "words": 'a "b" {c}\n'}
    with pytest.raises(UnnotedFailureError) as caught:
        note_failure(run, kind("It is full.\nReally.", **facts))
    said = (
        f"Error processing instruction 7.\n  pages\nfailures.UnnotedFailureError: {caught.value} [while running 'A/B']"
    )
    found = failure_in(said)
    assert type(found) is kind
    assert (str(found), found.facts) == ("It is full.\nReally.", facts)


@pytest.mark.parametrize(
    "said", ["", "Error", "epithre-beam failure ", "epithre-beam failure {}", 'epithre-beam failure {"code": 1']
)
def test_other_error_text_has_no_failure(said: str) -> None:
    assert failure_in(said) is None
