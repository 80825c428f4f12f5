"""Builds the source distribution and the wheel, and tests both in clean environments outside of the repository.

The source distribution is tested with the oldest Beam, by its tests that are marked `core`.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_READ = """
import sys
from epithre_beam.index import open_catalog
import pyarrow.compute as pc
with open_catalog(sys.argv[1]) as catalog:
    assert set(catalog.kinds) == {"image", "text"}, catalog.kinds
    import pyarrow.parquet as pq, glob
    table = pq.read_table(glob.glob(sys.argv[1] + "/versions/*/vectors/image-*.parquet")[0])
    vectors = table.column("embedding").combine_chunks().flatten().to_numpy().reshape(-1, 4000)
    hits = catalog.search(vectors[:3], k=1, kinds=("image",))
    assert [h[0].asset_id for h in hits] == table.column("asset_id").to_pylist()[:3], hits
    assert catalog.search(vectors[:1], k=5, kinds=("text",), where=pc.field("metadata", "lang") == "id")
assert "apache_beam" not in sys.modules
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def environment(folder: Path, requirement: str, constraints: str = "constraints.txt") -> Path:
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(*pip, "--constraint", ROOT / constraints, requirement, cwd=folder)
    return folder / "bin"


def serve(programs: Path, folder: Path) -> None:
    """Check that the wheel serves the page and all files that it loads."""
    command = [programs / "epithre-beam", "serve", "demo/catalog", "--port", "0", "--json"]
    process = subprocess.Popen(list(map(str, command)), cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"].rstrip("/")
        page = urllib.request.urlopen(f"{url}/").read().decode()
        names = re.findall(r'(?:src|href)="(page/[^"]+)"', page)
        assert len(names) >= 4, page
        for name in names:
            assert urllib.request.urlopen(f"{url}/{name}").status == 200, name
        body = json.dumps({"text": "sepeda merah", "kinds": ["image"], "k": 4}).encode()
        request = urllib.request.Request(f"{url}/api/search", body, {"Content-Type": "application/json"})
        hits = json.load(urllib.request.urlopen(request))["hits"]
        assert all("red-bicycle" in hit["asset_id"] for hit in hits), hits
    finally:
        process.terminate()
        process.wait()


def check_contents(wheel: Path) -> None:
    """Check that the wheel has only the package and its metadata, and every module of the folders."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"epithre_beam", wheel.name.split("-py3")[0] + ".dist-info"}, tops
    for place in ("configs", "index", "transforms", "pipelines"):
        for path in (ROOT / place).rglob("*.py"):
            assert f"epithre_beam/{path.relative_to(ROOT)}" in names, path


def try_source_distribution(archive: Path, folder: Path) -> None:
    """Run the tests of the source distribution against its installation with the oldest Beam."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    tree = folder / archive.name.removesuffix(".tar.gz")
    programs = environment(folder / "oldest", f"{archive}[beam,fast,serve,explore,test]", "constraints-oldest.txt")
    where = run(programs / "python", "-c", "import epithre_beam as e; print(e.__file__)", cwd=folder)
    assert where.startswith(str(folder / "oldest")), where
    beam = run(programs / "python", "-c", "import apache_beam; print(apache_beam.__version__)", cwd=folder).strip()
    jobs = os.environ.get("JOBS", "2")  # other tests run at the same time
    tests = run(programs / "pytest", "-q", "-n", jobs, "--dist", "loadfile", "-m", "core", "tests", cwd=tree)
    print(f"source distribution, Beam {beam}: {tests.splitlines()[-1]}")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=ROOT)
        (wheel,) = folder.glob("*.whl")
        (archive,) = folder.glob("*.tar.gz")
        check_contents(wheel)
        try_source_distribution(archive, folder)
        full = environment(folder / "full", f"{wheel}[beam,serve,explore]")
        print(run(full / "epithre-beam", "demo", "demo", "--images", "60", cwd=folder).splitlines()[-1])
        found = run(
            *(full / "epithre-beam", "search", "demo/catalog", "--text", "sepeda merah"),
            *("-k", "4", "--kind", "image"),
            cwd=folder,
        )
        assert found.count("red-bicycle") >= 4, found
        serve(full, folder)
        run(full / "epithre-beam", "look", "demo/catalog", "--map", "map.html", "--points", "60", cwd=folder)
        base = environment(folder / "base", str(wheel))
        run(base / "python", "-c", _READ, folder / "demo" / "catalog", cwd=folder)
        assert "versions" in run(base / "epithre-beam", "--help", cwd=folder)
        for command, sentence in (
            (("search", "nothing", "--text", "a"), "there is no catalog here"),
            (("run", "demo/job.yaml"), "Install the extra `beam`"),
            (("serve", "demo/catalog"), "Install the extra `serve`"),
        ):
            done = subprocess.run([base / "epithre-beam", *command], cwd=folder, capture_output=True, text=True)
            assert done.returncode, command
            assert sentence in done.stderr, done.stderr
            assert "Traceback" not in done.stderr, done.stderr
        print(run(base / "epithre-beam", "versions", "verify", "demo/catalog", cwd=folder).strip())
    print("wheel: 1 passed, 0 failed")


if __name__ == "__main__":
    main()
