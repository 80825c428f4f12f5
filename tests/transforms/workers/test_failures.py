"""What made a worker fail reaches the launcher as what it was, and telling it never hides it."""

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


def test_where_no_worker_failed_there_is_no_failure(run: RunFolder) -> None:
    assert failure_of(run) is None


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.code)
def test_every_error_of_ours_crosses_by_its_code_message_and_facts(run: RunFolder, kind: type[Exception]) -> None:
    facts = {"spent": {"requests": 3, "cost": None}, "reason": "missing"}
    note_failure(run, kind("It is full.", **facts))
    found = failure_of(run)
    assert type(found) is kind
    assert (str(found), found.facts) == ("It is full.", facts)


def test_facts_that_are_no_plain_data_cross_as_text(run: RunFolder) -> None:
    note_failure(run, SpendingLimitError("Enough.", place=Path("/a")))
    found = failure_of(run)
    assert isinstance(found, EpithreBeamError)
    assert found.facts["place"] == "/a"


def test_a_files_name_that_is_no_utf8_hides_nothing(run: RunFolder) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    note_failure(run, raised(FileNotFoundError(2, "No such file", name)))
    found = failure_of(run)
    assert isinstance(found, UnwritableError)
    assert name in str(found)


def test_an_error_of_the_storage_is_told_as_one_with_the_file(run: RunFolder) -> None:
    with pytest.raises(OSError, match="directory") as caught:
        Path(run.url, "no", "such").read_bytes()
    note_failure(run, caught.value)
    found = failure_of(run)
    assert isinstance(found, UnwritableError)
    assert f"catalog {run.url!r} cannot be written (No such file or directory: {run.url}/no/such)" in str(found)


def test_any_other_exception_is_a_defect_with_the_workers_own_traceback(run: RunFolder) -> None:
    note_failure(run, raised(KeyError("row")))
    found = failure_of(run)
    assert isinstance(found, DefectError)
    assert str(found) == "KeyError: 'row'"
    assert found.facts["traceback"].startswith("Traceback")
    assert "in raised" in found.facts["traceback"]
    assert found.facts["traceback"].endswith("KeyError: 'row'")


def test_an_error_of_ours_stays_the_very_same(run: RunFolder) -> None:
    error = SpendingLimitError("Enough.")
    assert as_known(run, error) is error


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"3", b"{}", b'{"code": "api"}', b'{"code": 1, "message": 1}'])
def test_a_note_that_was_cut_off_is_none(run: RunFolder, note: bytes) -> None:
    note_failure(run, KeyError("row"))
    run.store().write(run.name("failure.json"), note)
    assert failure_of(run) is None


def test_an_error_of_a_later_release_is_still_one_of_ours(run: RunFolder) -> None:
    run.store().write(run.name("failure.json"), b'{"code": "not_yet_known", "message": "Later.", "facts": {}}')
    found = failure_of(run)
    assert type(found) is EpithreBeamError
    assert str(found) == "Later."


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.code)
def test_what_cannot_be_noted_is_found_in_the_pages_of_a_runner(tmp_path: Path, kind: type[Exception]) -> None:
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
def test_in_other_pages_there_is_none(said: str) -> None:
    assert failure_in(said) is None
