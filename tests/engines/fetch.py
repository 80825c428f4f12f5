"""Fetch the engines that are not Python packages: `python tests/engines/fetch.py`.

Prism is built from Beam's Go module, whose checksum is pinned here; the Go checksum database verifies its dependencies.
If Go is too old, a Go toolchain is fetched as a Go module. The job servers of Flink and Spark are fetched with Maven.
An engine that is not available is reported, and its tests are skipped. Existing files are kept.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs

BEAM = "2.77.0"
MODULE = "github.com/apache/beam/sdks/v2"
MODULE_SUM = "h1:RsC61pHEvtySEHAURQyP/+CVOJm/hy5hewuG9JF0+Ow="
GO = "1.26.2"
"""The Go version in the module's go.mod."""
TOOLCHAIN_SUMS = {"amd64": "h1:mCBp0gCL9gQVqXpC60jQ7R46JDxL73qeF8hv6SnV2ss="}

JOB_SERVERS: dict[str, tuple[str, str | None]] = {
    "flink.jar": ("beam-runners-flink-2.2-job-server", None),
    "spark.jar": ("beam-runners-spark-3-job-server", None),
}
"""The artifact and its SHA-256. None: the checksum of the file is not known yet."""


class NotToBeHad(Exception):  # noqa: N818 - what happened, and no failure of this program
    """An engine cannot be fetched. The message has the reason."""


def engines_folder() -> Path:
    """Return the folder of the engines: EPITHRE_BEAM_ENGINES, or the user's cache."""
    named = os.environ.get("EPITHRE_BEAM_ENGINES")
    return Path(named) if named else Path(platformdirs.user_cache_dir("epithre-beam")) / "engines" / BEAM


def fetch_prism(folder: Path) -> None:
    environment = dict(os.environ)
    go = _go(environment)
    found = _output(go, environment, "mod", "download", "-json", f"{MODULE}@v{BEAM}")
    _check(f"{MODULE} {BEAM}", found["Sum"], MODULE_SUM)
    with tempfile.TemporaryDirectory() as built:
        _call(go, {**environment, "GOBIN": built}, "install", "-trimpath", f"{MODULE}/go/cmd/prism@v{BEAM}")
        _put(Path(built) / "prism", folder / "prism")


def _go(environment: dict[str, str]) -> str:
    """Return the path of a recent Go. For a fetched toolchain, its variables are added to `environment`."""
    go = shutil.which("go")
    if go is None:
        raise NotToBeHad("Go is not installed; on Debian: apt-get install golang-go")
    said = subprocess.run([go, "version"], capture_output=True, text=True, check=True).stdout.split()[2]
    if _numbers(said) >= _numbers(GO):
        environment["GOTOOLCHAIN"] = "local"
        return go
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    if machine not in TOOLCHAIN_SUMS:
        raise NotToBeHad(f"{said} is older than go{GO}, and no toolchain for {machine} is pinned here")
    found = _output(go, environment, "mod", "download", "-json", f"golang.org/toolchain@v0.0.1-go{GO}.linux-{machine}")
    _check(f"the toolchain {GO} for {machine}", found["Sum"], TOOLCHAIN_SUMS[machine])
    root = Path(found["Dir"])
    for path in [*(root / "bin").iterdir(), *(root / "pkg" / "tool").rglob("*")]:
        if path.is_file():
            path.chmod(0o555)  # a module's files are not executable
    environment |= {"GOROOT": str(root), "GOTOOLCHAIN": "local"}
    return str(root / "bin" / "go")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.removeprefix("go").split("-")[0].split(".") if part.isdigit())


def fetch_job_server(folder: Path, name: str) -> None:
    artifact, sha256 = JOB_SERVERS[name]
    if shutil.which("mvn") is None:
        raise NotToBeHad("Maven is not installed; on Debian: apt-get install maven default-jre-headless")
    with tempfile.TemporaryDirectory() as copied:
        coordinates = f"org.apache.beam:{artifact}:{BEAM}"
        plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
        options = ("-B", "-U", "-q", "--strict-checksums", plugin)
        _call("mvn", os.environ, *options, f"-Dartifact={coordinates}", f"-DoutputDirectory={copied}")
        (jar,) = Path(copied).glob("*.jar")
        with jar.open("rb") as file:
            reported = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 is None:
            raise NotToBeHad(f"its SHA-256 is {reported}, and none is pinned: verify it and pin it in {__file__}")
        _check(coordinates, reported, sha256)
        _put(jar, folder / name)


def _output(go: str, environment: dict[str, str], *arguments: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(_call(go, environment, *arguments))
    return found


def _call(program: str, environment: "dict[str, str] | os._Environ[str]", *arguments: str) -> str:
    done = subprocess.run(
        [program, *arguments],
        env=dict(environment),
        cwd=tempfile.gettempdir(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    if done.returncode:
        errors = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        first = next((line for line in errors if "rtifact" in line), errors[-1] if errors else "")
        raise NotToBeHad(f"{Path(program).name} failed with {done.returncode}: {first[:300]}")
    return done.stdout


def _check(what: str, reported: str, pinned: str) -> None:
    if reported != pinned:
        sys.exit(f"{what}: the checksum {reported} differs from the pinned {pinned}: it is not the tested file.")


def _put(made: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copyfile(made, part)
    part.chmod(0o755)
    part.replace(target)


def main() -> None:
    folder = engines_folder()
    for name in ("prism", *JOB_SERVERS):
        if (folder / name).exists():
            reported = "exists"
        else:
            try:
                fetch_prism(folder) if name == "prism" else fetch_job_server(folder, name)
                reported = "fetched"
            except NotToBeHad as error:
                reported = f"not available, its tests are skipped: {error}"
        sys.stdout.write(f"{name} ({folder}): {reported}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
