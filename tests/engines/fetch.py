"""Fetches the engines that are no Python packages, once: `python tests/engines/fetch.py`.

Prism is built from Beam's Go module, whose sum is pinned here; the Go checksum database proves the rest. Where Go is
missing or too old, a Go toolchain comes as a module of its own. The job servers of Flink and Spark come by Maven.
What a registry has not is said and left out, and its tests skip. Files already there are taken as they are.
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
"""What the module's go.mod asks for."""
TOOLCHAIN_SUMS = {"amd64": "h1:mCBp0gCL9gQVqXpC60jQ7R46JDxL73qeF8hv6SnV2ss="}

JOB_SERVERS: dict[str, tuple[str, str | None]] = {
    "flink.jar": ("beam-runners-flink-2.2-job-server", None),
    "spark.jar": ("beam-runners-spark-3-job-server", None),
}
"""The artifact and its SHA-256. None: nobody has had the file in hand here, so there is nothing to compare it with."""


class NotToBeHad(Exception):  # noqa: N818 - what happened, and no failure of this program
    """An engine cannot be fetched; the message says why."""


def engines_folder() -> Path:
    """Where the engines are: EPITHRE_BEAM_ENGINES, or the user's cache."""
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
    """A Go that is new enough; if it is not the one on the path, `environment` is told where it has its files."""
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
            raise NotToBeHad(f"it came with SHA-256 {reported}, and none is pinned: compare it and pin it in {__file__}")
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
        sys.exit(f"{what} has the checksum {reported}, pinned is {pinned}: it is not the file that was tested.")


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
            reported = "is there"
        else:
            try:
                fetch_prism(folder) if name == "prism" else fetch_job_server(folder, name)
                reported = "fetched"
            except NotToBeHad as error:
                reported = f"cannot be had, its tests skip: {error}"
        sys.stdout.write(f"{name} ({folder}): {reported}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
