"""An untrusted catalog gets no key and reads no place until the user allows its requests."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings

from ..conftest import KEY, sentences

AWS_SECRET = "AKIA-nobody-but-amazon-may-see-this"


@pytest.fixture
def sink():
    """A server that records requests and returns useless responses."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def parse_request(self):
            is_read = super().parse_request()
            received.append(f"{self.requestline} {dict(self.headers)}")
            self.send_error(418)
            return is_read and False

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", received
    server.shutdown()
    server.server_close()


def forge(catalog: Path, **changes) -> None:
    """Replaces the config in the manifest, with valid checksums."""
    latest = catalog / "LATEST.json"
    version = json.loads(latest.read_bytes())["version"]
    path = catalog / "versions" / version / "manifest.json"
    manifest = json.loads(path.read_bytes())
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            manifest["config"][section][key] = value
        else:
            manifest["config"][section] = value
    data = json.dumps(manifest).encode()
    path.write_bytes(data)
    latest.write_text(json.dumps({"version": version, "manifest_sha256": hashlib.sha256(data).hexdigest()}))


@pytest.fixture
def catalog(place):
    assert place.cli("run", "job.yaml", "--quiet").returncode == 0
    return place.catalog


COMMANDS = {
    "search": ("search", "catalog", "--text", "hello"),
    "look": ("look", "catalog", "--text", "hello", "--sheet", "sheet.png"),
    "evaluate": ("evaluate", "catalog", "--pairs", "pairs.csv"),
    "search-batch": ("search-batch", "batch.yaml"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_key_is_sent_to_the_address_of_an_untrusted_catalog(place, catalog, sink, command):
    address, received = sink
    forge(catalog, embed__base_url=f"{address}/v1", embed__api_key_env="AWS_SECRET_ACCESS_KEY")
    (place.folder / "pairs.csv").write_text("query,relevant\nhello,t001\n")
    (place.folder / "batch.yaml").write_text(
        "catalog: catalog\noutput: hits\nqueries: [{kind: text, table: texts.csv, id: id, text: text}]\n"
    )
    done = place.cli(*COMMANDS[command], AWS_SECRET_ACCESS_KEY=AWS_SECRET)
    assert done.returncode == 2, done.stderr
    (sentence,) = sentences(done.stderr)
    assert f'send the key in "AWS_SECRET_ACCESS_KEY" to "{address}/v1"' in sentence
    assert "epithre-beam trust" in sentence
    assert AWS_SECRET not in done.stdout + done.stderr
    assert received == []


def test_serve_sends_no_key_for_an_untrusted_catalog(place, catalog, sink):
    address, received = sink
    forge(catalog, embed__base_url=f"{address}/v1", embed__api_key_env="AWS_SECRET_ACCESS_KEY")
    server = place.start("serve", "catalog", "--port=0", "--json", AWS_SECRET_ACCESS_KEY=AWS_SECRET)
    try:
        assert json.loads(server.stdout.readline())["url"]
    finally:
        server.terminate()
        _, errors = server.communicate(timeout=60)
    assert "searches by text or image are disabled" in errors
    assert "AWS_SECRET_ACCESS_KEY" in errors
    assert AWS_SECRET not in errors
    assert received == []


def test_own_options_or_the_trust_command_allow_the_requests(place, catalog):
    with Emulator(EmulatorSettings(model="hash", dimension=64, api_keys=(KEY,))) as emulator:
        forge(catalog, embed__base_url=emulator.base_url, embed__api_key_env="OTHER_KEY")
        search = ("search", "catalog", "--text", "text number 7", "-k1", "--json")
        options = (f"--base-url={emulator.base_url}", "--api-key-env=EPITHRE_KEY")
        said = place.cli(*search, *options)
        by_environment = place.cli(
            *search, EPITHRE_BEAM_BASE_URL=emulator.base_url, EPITHRE_BEAM_API_KEY_ENV="EPITHRE_KEY"
        )
        refused = place.cli(*search, OTHER_KEY=KEY)
        named = place.cli(*search, OTHER_KEY=KEY, EPITHRE_BEAM_TRUSTED_CATALOGS=str(catalog))
        asked = place.cli("trust", "catalog")  # standard input is no terminal
        allowed = place.cli("trust", "catalog", "--yes")
        afterwards = place.cli(*search, OTHER_KEY=KEY)
        again = place.cli("trust", "catalog")
        address = emulator.base_url
    for done in (said, by_environment, named, afterwards):
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["results"][0]["hits"][0]["asset_id"] == "t007"
    assert refused.returncode == asked.returncode == 2
    assert "--yes" in asked.stderr
    assert f'send the key in "OTHER_KEY" to "{address}"' in allowed.stdout
    assert again.stdout == "catalog: all requests are allowed.\n"


def test_a_catalog_of_the_users_own_job_is_trusted(place):
    with Emulator(EmulatorSettings(model="hash", dimension=64, api_keys=(KEY,))) as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__api_key_env="MY_GATEWAY")
        assert place.cli("run", "job.yaml", "--quiet", MY_GATEWAY=KEY).returncode == 0
        done = place.cli("search", "catalog", "--text", "text number 7", "-k1", "--html=page.html", MY_GATEWAY=KEY)
        assert done.returncode == 0, done.stderr
    assert "not shown" not in done.stderr


def test_no_image_is_read_from_the_places_of_an_untrusted_catalog(place, catalog, sink):
    address, received = sink
    forge(catalog, sources=[{"kind": "image", "files": f"{address}/internal/*.jpg"}])
    done = place.cli("search", "catalog", "--image", "pictures/p001.jpg", "--kind=image", "--html=page.html")
    assert done.returncode == 0, done.stderr
    assert f"{address}/internal/*.jpg" in done.stderr
    assert "not shown" in done.stderr
    assert received == []


def test_a_rebuild_runs_no_code_from_an_untrusted_catalog(place, catalog):
    script = place.folder / "setup.py"
    script.write_text("open('ran', 'w')")
    forge(catalog, beam_options=[f"--setup_file={script}"])
    done = place.cli("index", "catalog", "--rebuild")
    assert done.returncode == 2, done.stderr
    assert "--setup_file" in done.stderr
    assert not (place.folder / "ran").exists()
