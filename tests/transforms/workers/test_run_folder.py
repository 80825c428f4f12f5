"""Processes exchange files through a run's folder, and an error of a write names the place."""

import errno
import pickle
from pathlib import Path

from epithre_beam.transforms.workers.run_folder import RunFolder

VERSION = "000001-20250102T030405Z-abcdef"


def test_pickled_run_folder_reads_files_of_the_run(tmp_path: Path) -> None:
    run = RunFolder(url=str(tmp_path), version=VERSION)
    run.store().write(run.name("note"), b"x")
    other = pickle.loads(pickle.dumps(run))
    assert other.store().read(other.name("note")) == b"x"
    assert (tmp_path / "runs" / VERSION / "note").read_bytes() == b"x"


def test_runs_of_one_catalog_have_separate_folders(tmp_path: Path) -> None:
    one, other = (RunFolder(url=str(tmp_path), version=version) for version in (VERSION, "000002-x"))
    one.store().write(one.name("note"), b"x")
    assert other.store().names(other.name("")) == []


def test_write_error_names_label_url_and_reason() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/found/part")
    assert str(RunFolder(url="/found", version="v", label="output").unwritable(full)) == (
        "output '/found' cannot be written (No space left on device: /found/part). "
        "Finished work is kept. Run again when it can be written."
    )
    bare = OSError("the bucket is gone")
    assert "catalog 'b://c' cannot be written (the bucket is gone). " in str(
        RunFolder(url="b://c", version="v").unwritable(bare)
    )
