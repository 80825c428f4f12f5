"""What `plan` takes in time and memory on a bucket of a million pictures, on each store's protocol.

    python benchmarks/listing.py [--objects 1000,1000000] [--stores s3,gcs,azure]
    python benchmarks/listing.py --driver       # what a name takes in the driver's own listing, one dictionary of all

The bucket exists only when it is listed (tests/stores/endless_bucket.py): nothing but names, sizes and etags is read.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from figures import Recording, Table, add_results_option

SERVER = Path(__file__).parent.parent / "tests" / "stores" / "endless_bucket.py"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # every emulator's
URLS = {"s3": "s3://bucket/photos", "gcs": "gs://bucket/photos", "azure": "az://bucket/photos"}


def environment(store: str, address: str) -> dict[str, str]:
    access = {
        "s3": {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"},
        "gcs": {"STORAGE_EMULATOR_HOST": address, "NO_GCE_CHECK": "true"},
        "azure": {
            "AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
            f"AccountKey={KEY};BlobEndpoint={address}/devstoreaccount1;"
        },
    }
    return {**os.environ, **access[store], "AWS_DEFAULT_REGION": "us-east-1", "EPITHRE_KEY": "key"}


def measure(store: str, objects: int) -> tuple[float, float]:
    """Seconds and peak megabytes of one `plan`."""
    server = subprocess.Popen([sys.executable, str(SERVER), str(objects)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = f"http://127.0.0.1:{int(server.stdout.readline())}"
        with tempfile.TemporaryDirectory() as folder:
            job = {
                "catalog": "catalog",
                "sources": [{"kind": "image", "files": f"{URLS[store]}/**/*.jpg"}],
                "embed": {"base_url": "emulator", "emulator_model": "hash", "dimension": 64},
            }
            (Path(folder) / "job.yaml").write_text(yaml.safe_dump(job))
            command = [sys.executable, "-m", "epithre_beam.pipelines.commands.cli", "plan", "job.yaml"]
            began = time.monotonic()
            process = subprocess.Popen(
                command, cwd=folder, env=environment(store, address), stdout=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            said = process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode or f"{objects:,}" not in said:
                raise SystemExit(f"plan ended with {process.returncode} and said: {said}")
            return time.monotonic() - began, used.ru_maxrss / 1024
    finally:
        server.kill()
        server.wait()


DRIVERS_OWN = """
import re, sys
from pathlib import Path
from epithre_beam.index.storage.remote import connect
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
fs, path = connect(sys.argv[1], {})
before = peak()
found = fs.find(path, detail=True)
print((peak() - before) // len(found))
"""


def measure_driver(store: str, objects: int) -> int:
    """Bytes of memory a name, in one dictionary of everything."""
    server = subprocess.Popen([sys.executable, str(SERVER), str(objects)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        access = environment(store, f"http://127.0.0.1:{int(server.stdout.readline())}")
        command = [sys.executable, "-c", DRIVERS_OWN, URLS[store]]
        return int(subprocess.run(command, env=access, stdout=subprocess.PIPE, check=True).stdout)
    finally:
        server.kill()
        server.wait()


def list_by_drivers(stores: list[str]) -> Table:
    lines = [(store, f"{measure_driver(store, 50_000):,}") for store in stores]
    return Table(("store", "bytes of memory a name"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", default="1000,1000000")
    parser.add_argument("--stores", default=",".join(URLS))
    parser.add_argument("--driver", action="store_true")
    add_results_option(parser)
    arguments = parser.parse_args()
    stores = arguments.stores.split(",")
    if arguments.driver:
        print(list_by_drivers(stores).to_markdown())
        return
    recording = Recording.start("listing", arguments)
    lines = []
    for store in stores:
        for objects in map(int, arguments.objects.split(",")):
            seconds, peak_mb = measure(store, objects)
            lines.append((store, f"{objects:,}", f"{seconds:.1f}", f"{peak_mb:.0f}"))
    plans = Table(("store", "objects", "s", "peak MB"), lines)
    recording.store({}, {"One plan": plans, "The drivers' own listings": list_by_drivers(stores)})


if __name__ == "__main__":
    main()
