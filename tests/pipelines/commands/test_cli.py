"""Invalid input gets one message with the place, the rule and the value, and the right exit code."""

import errno
import io
import json
import os
import signal
import struct
import time
import zlib

import pyarrow.parquet as pq
import pytest
from PIL import Image

from epithre_beam.index import open_catalog
from epithre_beam.index.storage.store import Store
from epithre_beam.index.versions.lease import hold
from epithre_beam.pipelines.jobs.places import misplaced
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults

from ..conftest import KEY, sentences


def assert_one_sentence(done, code, *words):
    assert done.returncode == code, (done.returncode, done.stderr)
    lines = sentences(done.stderr)
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], (word, lines[0])
    assert "Traceback" not in done.stderr + done.stdout


def serve(**settings):
    return Emulator(EmulatorSettings(dimension=64, api_keys=(KEY,), **settings))


def test_a_misspelt_key_is_reported_with_a_suggestion(place):
    place.write_job(embed__batch_itmes=3)
    assert_one_sentence(place.cli("run", "job.yaml"), 2, "embed.batch_itmes", "'batch_items'")


def test_a_value_out_of_range_is_reported_with_its_rule(place):
    done = place.cli("run", "job.yaml", "--set", "embed.batch_items=0")
    assert_one_sentence(done, 2, "embed.batch_items must be at least 1, got 0")


def test_a_missing_config_and_invalid_yaml_are_usage_errors(place):
    assert_one_sentence(place.cli("run", "none.yaml"), 2, "none.yaml")
    (place.folder / "bad.yaml").write_text("a: [1\nb: 2")
    assert_one_sentence(place.cli("run", "bad.yaml"), 2, "bad.yaml", "YAML")


def test_an_invalid_job_file_is_one_message(place):
    for content in (b"", b"- a\n", b"\x00\x01", b"\xff\xfe\xfd", b"!!python/object:os.system {}", b"a: &a [*a]\n"):
        (place.folder / "bad.yaml").write_bytes(content)
        assert_one_sentence(place.cli("plan", "bad.yaml"), 2, "bad.yaml")
    assert_one_sentence(place.cli("plan", "pictures"), 2, "pictures", "Is a directory")


def test_unknown_values_are_reported_with_their_place(place):
    place.write_job(catalog="s3x://bucket/catalog")
    assert_one_sentence(place.cli("plan", "job.yaml"), 2, "s3x://bucket/catalog must be a path, or a URL")
    place.write_job(runner="Nonsense")
    for command in ("run", "plan"):
        done = place.cli(command, "job.yaml")
        assert_one_sentence(done, 2, "runner: 'Nonsense' is not a runner of Beam. Use one of FnApiRunner, ")
    done = place.cli("index", "catalog", "--set", "indx.target_recall=0.9")
    assert_one_sentence(done, 2, "--set indx.target_recall: this is not a known key.", "Set a key of index,")
    place.write_job(sources=[{"kind": "text", "table": "pictures", "id": "id", "text": "text"}])
    assert_one_sentence(place.cli("plan", "job.yaml"), 2, "sources[0].table", "is a folder. Name its tables")
    assert_one_sentence(
        place.cli("demo", "/proc/demo"),
        2,
        "FOLDER '/proc/demo' cannot be written (No such file or directory",
        "Name a folder",
    )
    for settings, words in (("texts.csv", "must be a mapping"), ("job.yaml", "catalog: Extra inputs"), ("x", "x")):
        done = place.cli("emulator", "--port", "0", "--settings", settings)
        assert_one_sentence(done, 2, "invalid settings", words)


def test_a_missing_key_variable_is_named(place):
    place.write_job(embed__base_url="http://127.0.0.1:1/v1", embed__api_key_env="MY_KEY")
    assert_one_sentence(place.cli("run", "job.yaml", key=None), 2, "MY_KEY", "not set")


def test_a_source_that_matches_nothing_is_named(place):
    place.write_job(sources=[{"kind": "image", "files": "nowhere/**/*.jpg"}])
    assert_one_sentence(place.cli("run", "job.yaml"), 2, "sources[0].files", "nowhere/**/*.jpg")
    assert_one_sentence(place.cli("plan", "job.yaml"), 2, "sources[0].files")


def test_a_missing_column_is_reported_with_the_existing_ones(place):
    place.write_job(sources=[{"kind": "text", "table": "texts.csv", "id": "sku", "text": "text"}])
    assert_one_sentence(place.cli("run", "job.yaml"), 2, "sources[0].id", "'sku'", "id, text, price")


def test_duplicate_ids_are_reported_before_anything_is_sent(place):
    with (place.folder / "texts.csv").open("a") as file:
        file.write("t003,again,1\n")
    with serve() as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        assert_one_sentence(place.cli("run", "job.yaml"), 1, "text 't003'", "2 times", "(line 5 of ", "(line 52 of ")
        assert not emulator.log


def test_a_cell_of_another_type_is_reported_with_its_row(place):
    with (place.folder / "texts.csv").open("a") as file:
        file.write("t999,fine,cheap\n")
    assert_one_sentence(place.cli("run", "job.yaml"), 1, "metadata.price", "'cheap'", "line 52")


def bomb() -> bytes:
    """A PNG of a hundred bytes whose header states 3.6 billion pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_invalid_assets_become_dead_letters_and_the_rest_is_published(place):
    images = place.folder / "pictures"
    whole = next(images.iterdir()).read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "bomb.jpg").write_bytes(bomb())
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PPM")
    (images / "other.jpg").write_bytes(buffer.getvalue())
    with (place.folder / "texts.csv").open("a") as file:
        file.write(f"empty,,1\nlong,{'x' * 200},1\n")
    place.write_job(prepare__max_text_chars=100)
    done = place.cli("run", "job.yaml", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    letters = [letter for samples in report["dead_letters"]["samples"].values() for letter in samples]
    assert {letter["asset_id"]: letter["reason"] for letter in letters} == {
        "cut.jpg": "undecodable",
        "bomb.jpg": "too_many_pixels",
        "other.jpg": "format_not_allowed",
        "empty": "empty_text",
        "long": "text_too_long",
    }
    by_id = {letter["asset_id"]: letter["detail"] for letter in letters}
    assert "60000x60000" in by_id["bomb.jpg"] or "many" in by_id["bomb.jpg"]
    assert "prepare.max_text_chars" in by_id["long"]
    assert len(open_catalog(place.catalog)) == 90
    shown = place.cli("run", "job.yaml")
    assert "cut.jpg" in shown.stdout


def test_a_configured_gate_replaces_the_default(place):
    (place.folder / "pictures" / "bad.jpg").write_text("no")
    place.write_job(gates__max_dead_share=0.0)
    done = place.cli("run", "job.yaml", "--quiet")
    assert done.returncode == 3
    assert "gates.max_dead_share allows 0.00%" in done.stderr
    assert "versions publish" in done.stderr


def test_names_and_queries_with_brackets_are_shown_unchanged(place):
    source = next((place.folder / "pictures").iterdir())
    for name in ("[red]x.jpg", "a [/b].jpg"):
        path = place.folder / "pictures" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(source.read_bytes())
    (place.folder / "pictures" / "[bold].jpg").write_text("no picture")
    done = place.cli("run", "job.yaml")
    assert done.returncode == 0, done.stderr
    assert "[bold].jpg" in done.stdout
    done = place.cli("search", "catalog", "--text", "[/foo] [red]hi", "--image", source, "-k", "3")
    assert done.returncode == 0, done.stderr
    for text in ("[/foo] [red]hi", "[red]x.jpg", "a [/b].jpg"):
        assert text in done.stdout


def test_a_second_run_on_a_catalog_is_refused_until_the_first_ends(place):
    with serve(faults=Faults(latency_s=1.0)) as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__batch_items=8, embed__max_concurrency=1)
        first = place.start("run", "job.yaml")
        deadline = time.monotonic() + 30
        while not (place.catalog / ".lease.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert_one_sentence(place.cli("run", "job.yaml"), 4, "another run is under way", f"process {first.pid}")
        first.kill()
        first.communicate()
        emulator.reset(faults=Faults())
        assert place.cli("run", "job.yaml").returncode == 0
    assert [p.name for p in (place.catalog / "runs").glob("*")] == []


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_unit_is_detected_and_repeated(place, damage):
    (place.folder / "pictures" / "bad.jpg").write_bytes(b"not a picture")
    assert place.cli("run", "job.yaml", "--set", "gates.max_dead_share=0").returncode == 3  # its units are kept
    (unit,) = [p for p in place.catalog.glob("units/*") if pq.read_metadata(p).num_rows == 16][:1]
    data = bytearray(unit.read_bytes())
    data[len(data) // 2] ^= 0x40
    unit.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    done = place.cli("run", "job.yaml")
    assert done.returncode == 0, done.stderr
    assert (f"{unit.name} is damaged" in done.stderr) == (damage == "flipped")  # a cut unit was never complete
    for kind in ("image", "text"):
        first, last = (pq.read_table(p) for p in sorted(place.catalog.glob(f"versions/*/vectors/{kind}-*"))[::1][:2])
        assert first.equals(last)


def test_ctrl_c_ends_at_once_and_reports_that_work_is_kept(place):
    with serve(faults=Faults(latency_s=120)) as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        process = place.start("run", "job.yaml")
        deadline = time.monotonic() + 30
        while not emulator.log and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finished units are kept" in errors


def test_an_unclosed_quote_is_an_error(place):
    (place.folder / "texts.csv").write_text('id,text,price\na,"open,1\nb,two,2\n')
    assert_one_sentence(place.cli("run", "job.yaml"), 1, "sources[1].table", "quote")


def test_a_run_without_beam_names_the_extra_to_install(place):
    hidden = place.folder / "hidden"
    (hidden / "apache_beam").mkdir(parents=True)
    (hidden / "apache_beam" / "__init__.py").write_text("raise ModuleNotFoundError('no beam', name='apache_beam')")
    done = place.cli("run", "job.yaml", imports_itself=True, PYTHONPATH=str(hidden))
    assert_one_sentence(done, 2, "Install the extra `beam`")


def test_a_key_in_a_config_is_refused_and_not_shown(place):
    place.write_job(embed__api_key="sk-1234567890abcdef")
    done = place.cli("run", "job.yaml")
    assert_one_sentence(done, 2, "embed.api_key", "api_key_env")
    assert "1234567890" not in done.stderr


def test_a_refused_key_is_reported_without_the_key(place):
    with serve() as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        done = place.cli("run", "job.yaml", key="sk-wrong-987654321")
    assert_one_sentence(done, 2, "refused the API key", "embed.api_key_env")
    assert "987654321" not in done.stderr


def test_an_unknown_model_is_reported_with_the_known_ones(place):
    with serve() as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__model="epithre-embde")
        assert_one_sentence(place.cli("run", "job.yaml"), 2, "'epithre-embde'", "epithre-embed")


def test_an_unreachable_server_is_named(place):
    place.write_job(embed__base_url="http://127.0.0.1:9/v1")
    assert_one_sentence(place.cli("run", "job.yaml"), 1, "http://127.0.0.1:9/v1", "does not answer")


def test_vectors_of_another_dimension_stop_the_run(place):
    with Emulator(EmulatorSettings(dimension=32, api_keys=(KEY,))) as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        assert_one_sentence(
            place.cli("run", "job.yaml"),
            2,
            "embed.dimension: ",
            "vectors of dimension 32, not 64",
            "embed.dimension=32",
        )
    assert not (place.catalog / "LATEST.json").exists()


def test_a_spent_quota_stops_the_run_and_keeps_its_work(place):
    with serve(faults=Faults(quota_429=1.0, start_at_request=2)) as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__max_concurrency=1)
        assert_one_sentence(place.cli("run", "job.yaml"), 2, "quota")
    assert list(place.catalog.glob("units/*.parquet"))
    assert not list(place.catalog.glob("runs/*"))


def test_an_unwritable_catalog_is_named(place):
    (place.folder / "file").write_text("x")
    place.write_job(catalog="file/catalog")
    for command in ("run", "plan"):
        assert_one_sentence(place.cli(command, "job.yaml"), 2, f"{place.folder}/file")
    for arguments in (("index", "file", "--from", "none"), ("run", "job.yaml")):
        done, file = place.cli(*arguments), str(place.folder / "file")
        assert_one_sentence(done, 2, "' cannot be created: the file '", f"file {file!r} is in the way. Name another")
    for arguments in (("list", "file"), ("verify", "file/x"), ("prune", "file/x")):
        assert_one_sentence(place.cli("versions", *arguments), 2, f"{place.folder}/file", " is ", "a file", "folder")
    assert_one_sentence(place.cli("search", "file", "--text", "x"), 2, "file is a file. Give the folder of a catalog")


def test_an_unwritable_new_catalog_is_usage_and_an_existing_one_a_storage_failure(place):
    """Not even root may write below /proc."""
    place.write_job(catalog="/proc/catalog")
    assert_one_sentence(place.cli("run", "job.yaml"), 2, "catalog '", "' cannot be written (")
    error = PermissionError(errno.EACCES, "Permission denied", str(place.folder / "texts.csv"))
    store = Store(str(place.catalog))
    assert "Permission denied" in str(misplaced("catalog", store, error))
    assert misplaced("catalog", store, OSError(errno.ENOSPC, "No space left on device")) is None
    store.write("LATEST.json", b"{}")
    assert misplaced("catalog", store, error) is None


def test_wrong_usage_is_exit_code_2(place):
    assert place.cli("rnu").returncode == 2
    assert place.cli("run").returncode == 2
    assert_one_sentence(place.cli("run", "job.yaml", "--", "direct"), 2, "--", "'direct'")
    assert_one_sentence(place.cli("search", "catalog"), 2, "--text", "--image")
    assert_one_sentence(place.cli("search", "catalog", "--text", "x", "-k", "0"), 2, "-k", "got 0")
    assert_one_sentence(place.cli("search", "catalog", "--text", "x", "--kind", "video"), 2, "--kind", "'video'")
    assert_one_sentence(place.cli("search", "catalog", "--image", "none.jpg"), 2, "none.jpg")


def test_a_missing_catalog_is_reported(place):
    for command in (
        ("search", "catalog", "--text", "x"),
        ("versions", "list", "catalog"),
        ("versions", "verify", "catalog"),
    ):
        assert_one_sentence(place.cli(*command), 2, "catalog: there is no catalog here, the folder does not exist.")
    done = place.cli("search", "pictures", "--text", "x")
    assert_one_sentence(done, 2, "pictures: there is no catalog here, the folder has no `versions`.")


def test_a_catalog_whose_first_run_is_under_way_is_reported_as_such(place):
    with hold(Store(str(place.catalog)), "run"):
        for command in (("versions", "list", "catalog"), ("search", "catalog", "--text", "x")):
            done = place.cli(*command)
            words = "catalog: no version is current yet, the first run is under way (process "
            assert_one_sentence(done, 2, words, str(os.getpid()), "Wait until it has ended.")
    done = place.cli("versions", "list", "catalog")
    assert_one_sentence(done, 2, "catalog: there is no catalog here")


@pytest.fixture
def published(place):
    place.write_job(embed__emulator_model="attributes", embed__dimension=512)
    assert place.cli("run", "job.yaml").returncode == 0
    return place


def test_search_writes_a_table_json_and_a_page(published):
    image = next((published.folder / "pictures").iterdir())
    done = published.cli(
        "search", "catalog", "--text", "sepeda merah", "--image", image, "-k", "3", "--json", "--html", "page.html"
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [len(result["hits"]) for result in results] == [3, 3]
    assert results[1]["hits"][0]["asset_id"] == image.name
    page = (published.folder / "page.html").read_text()
    assert "sepeda merah" in page
    assert page.count("data:image/jpeg;base64,") >= 2
    assert "http" not in page.replace("http-equiv", "")
    table = published.cli("search", "catalog", "--text", "text number 3", "-k", "2", "--kind", "text")
    assert "text number" in table.stdout


def test_a_filter_that_matches_nothing_names_the_empty_column(published):
    """Only the table of texts has prices."""
    search = ("search", "catalog", "--text", "number 3")
    done = published.cli(*search, "--where", '{"$or": [{"price": {"$lt": 5}}]}')
    assert done.returncode == 0
    assert done.stderr == "No image of the catalog matches --where: all have null in price.\n"
    assert "text number 3" in done.stdout
    done = published.cli(*search, "--where", '{"price": {"$lt": 0}}', "--kind", "text")
    assert done.stderr == "No text of the catalog matches --where.\n"
    for quiet in (["--kind", "text"], ["--json"]):
        assert published.cli(*search, *quiet, "--where", '{"price": {"$lt": 5}}').stderr == ""


def test_an_unwritable_page_is_reported_before_anything_is_sent(published):
    for page in ("job.yaml/page.html", "none/page.html", "pictures"):
        done = published.cli("search", "catalog", "--text", "x", "--base-url", "http://127.0.0.1:9", "--html", page)
        assert_one_sentence(done, 2, "--html '", "' cannot be written (", page)


def test_a_query_that_cannot_be_embedded_is_reported(published):
    (published.folder / "no.jpg").write_text("no picture")
    assert_one_sentence(published.cli("search", "catalog", "--image", "no.jpg"), 2, "'no.jpg'", "not_a_picture")
    assert_one_sentence(published.cli("search", "catalog", "--text", " "), 2, "empty_text")
    done = published.cli("search", "catalog", "--text", "x" * 110_000)
    assert_one_sentence(done, 2, "text_too_long")
    assert len(done.stderr) < 300


def test_search_checks_base_url_and_key_like_a_job(published):
    search = ("search", "catalog", "--text", "x", "--base-url")
    assert_one_sentence(
        published.cli(*search, "nonsense"), 2, "epithre-beam: --base-url must be an http(s) URL", "'nonsense'"
    )
    done = published.cli(*search[:-1], EPITHRE_BEAM_BASE_URL="127.0.0.1:9")
    assert_one_sentence(done, 2, "EPITHRE_BEAM_BASE_URL must be an http(s) URL", "'127.0.0.1:9'")
    done = published.cli(*search, "http://127.0.0.1:9")
    assert_one_sentence(done, 1, "http://127.0.0.1:9 does not answer", "give another address of the model (--base-url)")
    assert "embed.base_url" not in done.stderr
    done = published.cli(*search, "http://example.org/v1", "--api-key-env", "EPITHRE_KEY")
    assert_one_sentence(done, 2, "embed: base_url 'http://example.org/v1' would send the key in clear text")
    done = published.cli(*search, "http://127.0.0.1:9", "--api-key-env", "NOPE")
    assert_one_sentence(done, 2, "NOPE is not set", "--api-key-env")


def test_characters_outside_the_terminals_encoding_are_escaped(published):
    done = published.cli("search", "catalog", "--text", "größe 猫", imports_itself=True, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "gr\\xf6\\xdfe \\u732b" in done.stdout


def test_a_search_with_another_model_is_refused(published):
    with Emulator(EmulatorSettings(dimension=512, api_keys=(KEY,))) as emulator:
        done = published.cli(
            *("search", "catalog", "--text", "x", "--base-url", emulator.base_url, "--api-key-env", "EPITHRE_KEY")
        )
    assert_one_sentence(done, 1, "emulator-attributes", "cannot be compared")


def test_the_printed_schema_equals_the_one_in_the_repository(place):
    from pathlib import Path

    shipped = Path(__file__).parents[3] / "configs" / "job.schema.json"
    assert json.loads(place.cli("schema").stdout) == json.loads(shipped.read_text())


def test_the_version_option_prints_the_version(place):
    import importlib.metadata

    assert place.cli("--version").stdout.strip() == importlib.metadata.version("epithre-beam")


def test_a_wrong_value_of_beams_is_one_sentence_and_one_document(place):
    done = place.cli("run", "job.yaml", "--json", "--", "--direct_num_workers=x")
    assert done.returncode == 2
    assert json.loads(done.stdout)["status"] == "usage"
    assert "direct_num_workers" in json.loads(done.stdout)["message"]
    assert "Traceback" not in done.stderr
