"""Local servers for three object stores: S3, Google Cloud Storage (JSON API) and Azure Blob Storage."""

import contextlib
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from epithre_beam.index import Store

from ..ports import free_port
from ..s3_server import BUCKET, Proxy
from .gcs_server import GcsServer

AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The well-known key of the Azure emulator."""
STORES = ("s3", "gcs", "azure")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A bucket on one of the servers."""

    name: str
    port: int

    def url(self, folder: str) -> str:
        return f"{({'s3': 's3', 'gcs': 'gs', 'azure': 'az'})[self.name]}://{BUCKET}/{folder}"

    def options(self, port: int | None = None) -> dict[str, Any]:
        """Return the fsspec options; `port` is the port of a proxy, if there is one."""
        address = f"http://127.0.0.1:{port or self.port}"
        match self.name:
            case "s3":
                return {"endpoint_url": address, "key": "key", "secret": "secret"}
            case "gcs":
                return {"endpoint_url": address, "token": "anon"}
            case _:
                return {"connection_string": azure_connection(address)}

    def environment(self, port: int | None = None) -> dict[str, str]:
        """Return the same settings as environment variables of the cloud's client library."""
        address = f"http://127.0.0.1:{port or self.port}"
        match self.name:
            case "s3":
                return {
                    "AWS_ENDPOINT_URL": address,
                    "AWS_ACCESS_KEY_ID": "key",
                    "AWS_SECRET_ACCESS_KEY": "secret",
                    "AWS_DEFAULT_REGION": "us-east-1",
                }
            case "gcs":
                return {"STORAGE_EMULATOR_HOST": address, "NO_GCE_CHECK": "true"}
            case _:
                return {"AZURE_STORAGE_CONNECTION_STRING": azure_connection(address)}

    def store(self, folder: str, *, port: int | None = None) -> Store:
        return Store(self.url(folder), self.options(port))


def azure_connection(address: str, key: str = AZURE_KEY) -> str:
    account = "devstoreaccount1"
    return f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};BlobEndpoint={address}/{account};"


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsServer]:
    with GcsServer((BUCKET,)) as server:
        yield server


@pytest.fixture(scope="session")
def azure_port() -> Iterator[int]:
    """Start Azurite, installed by `make test-stores` or found on the PATH."""
    own = Path(sys.prefix) / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    program = str(own) if own.exists() else shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not installed: run `make test-stores`")
    port = free_port()
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry"]
    process = subprocess.Popen([program, "--blobPort", str(port), *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("azurite-blob did not start")
            time.sleep(0.05)
        Store(f"az://{BUCKET}", {"connection_string": azure_connection(f"http://127.0.0.1:{port}")}).fs.mkdir(BUCKET)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=STORES, scope="session")
def place(request: pytest.FixtureRequest) -> Place:
    ports: dict[str, Callable[[], int]] = {
        "s3": lambda: request.getfixturevalue("s3_server").port,
        "gcs": lambda: request.getfixturevalue("gcs_server").port,
        "azure": lambda: request.getfixturevalue("azure_port"),
    }
    return Place(name=request.param, port=ports[request.param]())


@pytest.fixture
def folder() -> str:
    return secrets.token_hex(8)


@pytest.fixture
def store(place: Place, folder: str) -> Store:
    return place.store(folder)


@pytest.fixture
def proxy(place: Place) -> Iterator[Proxy]:
    proxy = Proxy(place.port)
    yield proxy
    proxy.close()


@pytest.fixture(scope="session", autouse=True)
def no_cloud_of_ones_own() -> Iterator[None]:
    """Hide the user's cloud credentials from the tests, and skip the tests if a driver is not installed."""
    if missing := [name for name in ("gcsfs", "adlfs") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{' and '.join(missing)} are not installed: run `make test-stores`")
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR"))]:
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("NO_GCE_CHECK", "true")
        yield
