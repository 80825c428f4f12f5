"""The engines that run the same jobs: start each with two workers, and the options that select it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import yaml

from ..ports import free_port
from .fetch import engines_folder

PYTHON = Path(sys.executable)
BROKEN = Path(__file__).with_name("broken")
"""A folder on the path of every worker: it adds a bug for catalogs with the file `BUG`."""
_JAVA_OPENS = tuple(
    f"--add-opens=java.base/{name}=ALL-UNNAMED"
    for name in ("sun.nio.ch", "java.nio", "java.util", "java.lang.invoke", "java.lang", "java.net")
)


class Missing(Exception):  # noqa: N818 - a reason to skip
    """The engine is not available on this machine. The message says how to install it."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A running engine."""

    name: str
    options: tuple[str, ...]
    """Beam options that select the engine."""
    processes: tuple[psutil.Process, ...] = field(default=())
    """The processes whose children are its workers; empty: the launcher."""

    def workers(self, launcher: int) -> list[psutil.Process]:
        """Return the descendants of the engine's processes and of the launcher."""
        found = []
        for process in (*self.processes, psutil.Process(launcher)):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += process.children(recursive=True)
        return found


def file_of(name: str) -> Path:
    path = engines_folder() / name
    if not path.exists():
        raise Missing(f"{path} does not exist: run `make test-engines` to fetch it")
    return path


@contextlib.contextmanager
def service(folder: Path, name: str, command: list[str], port: int | None = None) -> Iterator[psutil.Process]:
    """Start a process and wait until it accepts connections at `port`. It and its descendants end with the block."""
    log = folder / f"{name}.log"
    environment = {
        **os.environ,
        "PATH": f"{PYTHON.parent}:{os.environ['PATH']}",  # Beam's worker pool starts its workers as `python`
        "EPITHRE_KEY": KEY,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(BROKEN),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
        )
    found = psutil.Process(process.pid)
    try:
        deadline = time.monotonic() + 60
        while port is not None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start:\n{log.read_text()[-2000:]}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield found
    finally:
        below = found.children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([found, *below], timeout=3)
        for each in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


FLINK = {
    "taskmanager.numberOfTaskSlots": 2,
    "taskmanager.network.sort-shuffle.min-buffers": 64,
    "restart-strategy.type": "fixed-delay",
    "restart-strategy.fixed-delay.attempts": 3,
    "restart-strategy.fixed-delay.delay": "1 s",
}
"""Required cluster settings that differ from the defaults; docs/engines.md has the reasons."""
KEY = "key-for-tests-0123456789"


@contextlib.contextmanager
def in_memory(folder: Path) -> Iterator[Engine]:
    yield Engine(name="in_memory", options=("--runner=FnApiRunner",))


@contextlib.contextmanager
def processes(folder: Path) -> Iterator[Engine]:
    options = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    yield Engine(name="processes", options=options)


@contextlib.contextmanager
def repeated(folder: Path) -> Iterator[Engine]:
    """Run every bundle twice and discard the first result, as Spark may do with a collection that is used twice."""
    yield Engine(name="repeated", options=("--runner=FnApiRunner", "--direct_runner_bundle_repeat=1"))


@contextlib.contextmanager
def bundle_based(folder: Path) -> Iterator[Engine]:
    yield Engine(name="bundle_based", options=("--runner=BundleBasedDirectRunner",))


@contextlib.contextmanager
def pool(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Start Beam's worker pool: SDK workers in separate processes, as in a container next to a task manager."""
    port = free_port()
    command = [str(PYTHON), "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    with service(folder, "pool", command, port) as process:
        yield f"localhost:{port}", process


@contextlib.contextmanager
def portable(folder: Path) -> Iterator[Engine]:
    """Start Beam's own job server in Python, with two workers from a pool."""
    port = free_port()
    command = [str(PYTHON), "-m", "apache_beam.runners.portability.local_job_service_main", f"--job_port={port}"]
    command += [f"--staging_dir={folder / 'staging'}"]
    with service(folder, "job-server", command, port) as server, pool(folder) as (address, workers):
        options = ("--runner=PortableRunner", f"--job_endpoint=localhost:{port}", "--direct_num_workers=2")
        options += ("--environment_type=EXTERNAL", f"--environment_config={address}")
        yield Engine(name="portable", options=options, processes=(server, workers))


@contextlib.contextmanager
def prism(folder: Path) -> Iterator[Engine]:
    """Start Prism. It has one worker, which processes many bundles concurrently."""
    port = free_port()
    command = [str(file_of("prism")), f"--job_port={port}", "--serve_http=false"]
    with service(folder, "prism", command, port) as server, pool(folder) as (address, workers):
        options = ("--runner=PortableRunner", f"--job_endpoint=localhost:{port}")
        options += ("--environment_type=EXTERNAL", f"--environment_config={address}")
        yield Engine(name="prism", options=options, processes=(server, workers))


@contextlib.contextmanager
def dask(folder: Path) -> Iterator[Engine]:
    """Start a scheduler and two workers, each with a nanny that restarts it."""
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise Missing("dask is not installed: pip install 'apache-beam[dask]'") from None
    port = free_port()
    program = [str(PYTHON), "-m", "distributed.cli.dask_scheduler", "--host=127.0.0.1", f"--port={port}"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(service(folder, "scheduler", [*program, "--no-dashboard"], port))
        address = f"tcp://127.0.0.1:{port}"
        nannies = []
        for i in range(2):
            worker = [str(PYTHON), "-m", "distributed.cli.dask_worker", address, "--nthreads=2", "--no-dashboard"]
            worker += ["--host=127.0.0.1", f"--local-directory={folder / f'worker{i}'}"]
            nannies.append(stack.enter_context(service(folder, f"worker{i}", worker)))
        options = ("--runner=apache_beam.runners.dask.dask_runner.DaskRunner", f"--dask_client_address={address}")
        yield Engine(name="dask", options=(*options, "--dask_npartitions=4"), processes=tuple(nannies))


@contextlib.contextmanager
def job_server(folder: Path, name: str, *arguments: str) -> Iterator[Engine]:
    """Start a Java job server with an embedded engine, with workers from a pool."""
    jar = file_of(f"{name}.jar")
    java = shutil.which("java")
    if java is None:
        raise Missing("Java is not installed; on Debian: apt-get install default-jre-headless")
    port = free_port()
    command = [java, "-Xmx2g", *_JAVA_OPENS, "-jar", str(jar), f"--job-port={port}", "--artifact-port=0"]
    command += ["--expansion-port=0", f"--artifacts-dir={folder / 'artifacts'}", *arguments]
    with service(folder, name, command, port) as server, pool(folder) as (address, workers):
        options = ("--runner=PortableRunner", f"--job_endpoint=localhost:{port}", "--parallelism=2")
        options += ("--environment_type=EXTERNAL", f"--environment_config={address}", "--sdk_worker_parallelism=2")
        yield Engine(name=name, options=options, processes=(server, workers))


@contextlib.contextmanager
def flink(folder: Path) -> Iterator[Engine]:
    settings = folder / "conf"
    settings.mkdir()
    (settings / "config.yaml").write_text(yaml.safe_dump(FLINK), "utf-8")
    with job_server(folder, "flink", "--flink-master=[local]", f"--flink-conf-dir={settings}") as engine:
        yield replace(engine, options=(*engine.options, "--execution_mode_for_batch=BATCH_FORCED"))


@contextlib.contextmanager
def spark(folder: Path) -> Iterator[Engine]:
    with job_server(folder, "spark", "--spark-master-url=local[2]") as engine:
        yield engine


ENGINES: dict[str, Callable[[Path], contextlib.AbstractContextManager[Engine]]] = {
    "in_memory": in_memory,
    "processes": processes,
    "repeated": repeated,
    "bundle_based": bundle_based,
    "portable": portable,
    "prism": prism,
    "dask": dask,
    "flink": flink,
    "spark": spark,
}
