"""Lost and delayed answers on S3. `stores/test_conditions.py` tests all stores."""

import re
import secrets
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from epithre_beam.configs.errors import StoreError, SwapUnknownError
from epithre_beam.index.publish.publish import publish
from epithre_beam.index.versions.latest import read_latest
from epithre_beam.index.versions.layout import LATEST

from ...s3_server import Proxy, S3Server, s3_store
from ..manifests import make_manifest


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    proxy = Proxy(s3_server.port)
    yield proxy
    proxy.close()


def first_write(what: str) -> Any:
    """Return a fault that applies `what` to the first PUT."""
    left = [what]
    lock = threading.Lock()

    def fault(method: str, headers: dict[str, str]) -> str:
        with lock:
            return left.pop() if method == "PUT" and left else "pass"

    return fault


@pytest.mark.parametrize("attempts", [1, 3], ids=["asked once", "asked again by the client"])
@pytest.mark.parametrize("what", ["lose answer", "lose request", "error"])
def test_write_with_a_lost_answer_succeeds_once(proxy: Proxy, what: str, attempts: int) -> None:
    """The retry of the client is refused because of its own first write. That is not a lost race."""
    store = s3_store(proxy.port, secrets.token_hex(8), attempts=attempts)
    proxy.fault = first_write(what)
    store.create("a", b"one")
    proxy.fault = first_write(what)
    store.swap("a", b"one", b"two")
    assert store.read("a") == b"two"


def test_write_without_answers_has_an_unknown_outcome(proxy: Proxy) -> None:
    store = s3_store(proxy.port, secrets.token_hex(8))
    store.create("a", b"one")
    proxy.fault = lambda method, headers: "error" if method == "PUT" else "pass"
    store.swap("a", b"one", b"two")  # the answers are failures, but the object can be read
    began = []

    def silent_after_the_write(method: str, headers: dict[str, str]) -> str:
        began.append(method)
        return "error" if "PUT" in began else "pass"

    proxy.fault = silent_after_the_write
    with pytest.raises(SwapUnknownError, match=re.escape(f"{store.url}/a: it is unknown whether the file was written")):
        store.swap("a", b"two", b"three")
    proxy.fault = lambda method, headers: "lose request" if method == "PUT" else "pass"
    store.fs.retries = 1
    with pytest.raises(SwapUnknownError, match="it is unknown whether"):
        store.swap("a", b"three", b"four")
    proxy.fault = lambda method, headers: "pass"
    assert store.read("a") == b"three"


def test_missing_bucket_raises_file_not_found(s3_server: S3Server) -> None:
    store = s3_store(s3_server.port, "x")
    store.url = "s3://no-such-bucket/x"
    with pytest.raises(FileNotFoundError):
        store.create("a", b"x")


def test_probe_without_an_answer_raises(proxy: Proxy) -> None:
    store = s3_store(proxy.port, secrets.token_hex(8))
    seen = []

    def fail_the_second_write(method: str, headers: dict[str, str]) -> str:
        seen.append(method)
        return "error" if method == "PUT" and seen.count("PUT") == 2 else "pass"

    proxy.fault = fail_the_second_write
    with pytest.raises(StoreError, match="could not test whether the store refuses"):
        store.probe()


def test_publication_with_a_lost_answer_is_found_in_the_ancestors(proxy: Proxy, s3_server: S3Server) -> None:
    """The answer is lost, and another run publishes before the outcome is checked."""
    folder = secrets.token_hex(8)
    store, other = s3_store(proxy.port, folder), s3_store(s3_server.port, folder)
    publish(store, make_manifest(store, "000001-a", None), None)
    latest = read_latest(store)
    assert latest is not None
    manifest = make_manifest(store, "000002-b", "000001-a")
    seen = []

    def fault(method: str, headers: dict[str, str]) -> str:
        if method == "PUT":
            seen.append(method)
            return "error"
        if len(seen) == 1:  # the first read after the write
            seen.append("followed")
            now = read_latest(other)
            assert now is not None
            publish(other, make_manifest(other, "000003-c", "000002-b"), now[0])
        return "pass"

    proxy.fault = fault
    publish(store, manifest, latest.data)
    after = read_latest(store)
    assert after is not None
    assert after[1] == "000003-c"


def test_publication_with_unknown_outcome_deletes_nothing(proxy: Proxy) -> None:
    store = s3_store(proxy.port, secrets.token_hex(8))
    manifest = make_manifest(store, "000001-a", None)
    seen = []

    def silent_after_the_write(method: str, headers: dict[str, str]) -> str:
        seen.append(method)
        return "error" if "PUT" in seen else "pass"

    proxy.fault = silent_after_the_write
    with pytest.raises(SwapUnknownError, match=r"unknown whether version 000001-a was published\. Nothing was deleted"):
        publish(store, manifest, None)
    proxy.fault = lambda method, headers: "pass"
    assert store.names("") == [LATEST, "versions/000001-a/manifest.json"]
