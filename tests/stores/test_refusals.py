"""Error messages when a store refuses a request, and the number of retries."""

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from epithre_beam.index import Store
from epithre_beam.index.storage.remote import connect, list_page

from ..pipelines.conftest import Place as Desk
from ..pipelines.conftest import sentences
from ..s3_server import BUCKET, Proxy
from .conftest import AZURE_KEY, Place, azure_connection
from .gcs_server import GcsServer

PROTOCOLS = {"s3": "s3", "gcs": "gs", "azure": "az"}


def refusing_first(status: str) -> Callable[[str, dict[str, str]], str]:
    left = [status]
    lock = threading.Lock()

    def fault(method: str, headers: dict[str, str]) -> str:
        with lock:
            return left.pop() if left else "pass"

    return fault


def test_request_to_busy_store_is_retried(place: Place, proxy: Proxy, store: Store, folder: str) -> None:
    store.write("a", b"one")
    fs, path = connect(place.url(folder), place.options(proxy.port))
    proxy.fault = refusing_first("500")
    assert fs.cat_file(f"{path}/a") == b"one"
    proxy.fault = refusing_first("503")
    assert [name for name, _ in list_page(fs, path).files] == [f"{path}/a"]
    proxy.fault = refusing_first("429" if place.name == "gcs" else "503")  # the status of a busy store
    place.store(folder, port=proxy.port).write("b", b"two")
    assert store.read("b") == b"two"


# Not with Google's client: it retries six times over half a minute, which takes too long here.
@pytest.mark.parametrize("place", ["s3", "azure"], indirect=True)
def test_unavailable_store_is_retried_a_few_times_only(place: Place, proxy: Proxy, folder: str) -> None:
    proxy.fault = lambda method, headers: "503"
    store = place.store(folder, port=proxy.port)
    began = time.monotonic()
    with pytest.raises(OSError, match=r"."):
        store.read("a")
    assert 2 <= len(proxy.requests) <= 8
    assert time.monotonic() - began < 45


@pytest.mark.parametrize("ask", [lambda s: s.read("a"), lambda s: s.size("a"), lambda s: s.write("a", b"x")])
def test_refused_request_raises_permission_error(
    place: Place, proxy: Proxy, folder: str, ask: Callable[[Store], object]
) -> None:
    proxy.fault = lambda method, headers: "403"
    with pytest.raises(PermissionError) as caught:
        ask(place.store(folder, port=proxy.port))
    assert AZURE_KEY not in str(caught.value)


def test_wrong_key_error_does_not_show_the_key(place: Place, folder: str, tmp_path: Path) -> None:
    environment = place.environment()
    if place.name == "azure":
        key = AZURE_KEY.replace("Eby8", "Eby9")
        environment = {"AZURE_STORAGE_CONNECTION_STRING": azure_connection(f"http://127.0.0.1:{place.port}", key)}
    else:
        key = "secret"
        proxy = Proxy(place.port)
        proxy.fault = lambda method, headers: "403"
        environment = place.environment(proxy.port)
    done = Desk(tmp_path).cli("versions", "list", place.url(folder), **environment)
    assert done.returncode == 1
    (sentence,) = sentences(done.stderr)
    assert any(word in sentence for word in ("refused", "Forbidden")), sentence
    assert key not in done.stderr
    assert "Traceback" not in done.stderr


def test_error_says_that_credentials_are_missing(tmp_path: Path) -> None:
    """Not for Google, whose client continues without credentials and is refused by the bucket."""
    for protocol in ("s3", "az"):
        done = Desk(tmp_path).cli("versions", "list", f"{protocol}://{BUCKET}/catalog")
        assert done.returncode == 1
        (sentence,) = sentences(done.stderr)
        assert "Provide credentials where" in sentence


def test_missing_bucket_is_reported(place: Place, tmp_path: Path) -> None:
    nowhere = f"{PROTOCOLS[place.name]}://no-such-bucket/pictures"
    desk = Desk(tmp_path)
    desk.write_job(sources=[{"kind": "image", "files": f"{nowhere}/**/*.jpg"}])
    planned = desk.cli("plan", "job.yaml", **place.environment())
    assert planned.returncode == 2
    assert "the folder 'no-such-bucket/pictures' does not exist" in planned.stderr
    with pytest.raises(FileNotFoundError):
        Store(nowhere, place.options()).create("a", b"x")
    with pytest.raises(FileNotFoundError):
        list_page(*connect(nowhere, place.options()))


@pytest.mark.parametrize(
    ("protocol", "package", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs"), ("az", "adlfs", "azure")]
)
def test_error_names_missing_driver(protocol: str, package: str, extra: str, tmp_path: Path) -> None:
    run = "from epithre_beam.pipelines.commands.cli import main; sys.exit(main())"
    code = f"import sys; sys.modules[{package!r}] = None; {run}"
    command = [sys.executable, "-c", code, "versions", "list", f"{protocol}://bucket/catalog"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"Install the extra `{extra}`" in done.stderr


def test_concurrent_reads_succeed_on_busy_store(place: Place, proxy: Proxy, store: Store, folder: str) -> None:
    """Every seventh request is refused, and sixteen threads read."""
    for number in range(8):
        store.write(f"{number}", b"%d" % number)
    asked = []

    def fault(method: str, headers: dict[str, str]) -> str:
        asked.append(method)
        return "503" if len(asked) % 7 == 3 else "pass"

    proxy.fault = fault
    busy = place.store(folder, port=proxy.port)
    busy.size("0")
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda n: busy.read(str(n % 8)), range(24))) == [b"%d" % (n % 8) for n in range(24)]


def test_google_uses_service_account_from_environment(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    with GcsServer((BUCKET,)) as server:
        server.token = "a-token-of-this-test"
        account = {
            "type": "service_account",
            "client_email": "robot@project.iam",
            "private_key": key.private_bytes(*form).decode(),
            "token_uri": f"{server.url}/token",
        }
        (tmp_path / "account.json").write_text(json.dumps(account))
        place = Place(name="gcs", port=server.port)
        ask = ["versions", "list", place.url("catalog")]
        refused = Desk(tmp_path).cli(*ask, **place.environment())
        assert refused.returncode == 1
        assert "was refused" in refused.stderr
        chain = {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "account.json")}
        allowed = Desk(tmp_path).cli(*ask, **place.environment(), **chain)
        assert "refused" not in allowed.stderr
        assert ("POST", "/token") in server.requests
        assert server.token not in allowed.stderr + allowed.stdout


def test_large_file_is_written_completely_to_busy_store(place: Place, proxy: Proxy, store: Store, folder: str) -> None:
    """The file is larger than one block of each driver."""
    asked = []

    def fault(method: str, headers: dict[str, str]) -> str:
        asked.append(method)
        return "503" if len(asked) % 3 == 1 else "pass"

    proxy.fault = fault
    data = random.Random(5).randbytes(11_000_000)
    with place.store(folder, port=proxy.port).open_write("large") as file:
        for start in range(0, len(data), 1 << 20):
            file.write(data[start : start + (1 << 20)])
    assert store.read("large") == data
    assert len(asked) > 1


def write_and_fail(store: Store, size: int) -> None:
    with store.open_write("half") as file:
        file.write(b"x" * size)
        raise ZeroDivisionError


def test_failed_write_leaves_no_file(store: Store) -> None:
    for size in (10, 7_000_000):
        with pytest.raises(ZeroDivisionError):
            write_and_fail(store, size)
        assert store.listing() == []
