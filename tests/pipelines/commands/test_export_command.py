"""The command `epithre-beam export`: its output, refusals and repetition."""

import json
import shutil
import signal
import time

import pytest

from ..conftest import Place, sentences, write_images, write_texts


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A catalog from a real run. Read-only."""
    place = Place(tmp_path_factory.mktemp("export"))
    write_images(place.folder / "pictures", 20)
    write_texts(place.folder / "texts.csv", 30)
    place.write_job()
    done = place.cli("run", "job.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    return place


def test_export_prints_a_summary_or_the_json_document(made, tmp_path):
    done = made.cli("export", "catalog", tmp_path / "one", "--to", "pgvector", key=None)
    assert (done.returncode, done.stderr) == (0, "")
    first, *files = done.stdout.splitlines()
    assert first.endswith(f"{tmp_path / 'one'}: 20 image, 30 text, for pgvector")
    assert [line.split()[0] for line in files] == [
        "image_assets-00000-of-00001.copy",
        "text_assets-00000-of-00001.copy",
        "schema.sql",
        "load.sql",
        "indexes.sql",
    ]
    done = made.cli("export", "catalog", tmp_path / "two", "--to", "faiss", "--kind", "text", "--json", key=None)
    mark = json.loads(done.stdout)
    assert mark == json.loads((tmp_path / "two" / "export.json").read_text())
    assert mark["kinds"] == {"text": {"rows": 30, "factory": "SQfp16"}}
    done = made.cli("export", "catalog", tmp_path / "three", "--to", "clip-retrieval", "-q", key=None)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["catalog", "new", "--to", "csv"], 2, "--to must be faiss, clip-retrieval or pgvector, got 'csv'."),
        (["catalog", "pictures", "--to", "faiss"], 2, "pictures is not empty (it contains p000.jpg). Choose a new"),
        (["catalog", "new", "--to", "faiss", "--version", "7"], 2, "catalog has no version '7'"),
        (["catalog", "job.yaml/new", "--to", "faiss"], 2, "job.yaml' is in the way. Name another folder"),
        (["catalog", "/proc/new", "--to", "faiss"], 2, "' cannot be written ("),
        (["none", "new", "--to", "faiss"], 2, "none: there is no catalog here, the folder does not exist."),
    ],
)
def test_each_refusal_has_one_message_and_an_exit_code(made, words, code, sentence):
    done = made.cli("export", *words, key=None)
    assert done.returncode == code, done.stderr
    (said,) = sentences(done.stderr)
    assert sentence in said
    assert not (made.folder / "new").exists()
    assert "Traceback" not in done.stderr


def test_a_killed_export_is_completed_by_the_same_command(made, tmp_path):
    """It is killed when the first file appears, complete or not, and at later files."""
    expected = made.cli("export", "catalog", tmp_path / "whole", "--to", "clip-retrieval", "--json", key=None)
    files = json.loads(expected.stdout)["files"]
    for name in ("image/image.index", "text/metadata/00000.arrow"):
        folder = tmp_path / "killed"
        process = made.start("export", "catalog", folder, "--to", "clip-retrieval", key=None)
        deadline = time.monotonic() + 60
        while not (folder / name).exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        is_whole = json.loads((folder / "export.json").read_text())["complete"]
        overwrite = ["--overwrite"] if is_whole else []
        done = made.cli("export", "catalog", folder, "--to", "clip-retrieval", "--json", *overwrite, key=None)
        assert done.returncode == 0, done.stderr
        mark = json.loads(done.stdout)
        assert (mark["complete"], mark["files"]) == (True, files)
        assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
            "export.json",
            ".export.json.lock",
            *(file["name"] for file in files),
        }
        shutil.rmtree(folder)
