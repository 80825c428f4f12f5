"""This index: `epithre-beam index CATALOG --from FOLDER`, then `open_catalog` and its search."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from contest import DIRECTIONS, KINDS, SINGLE, Asked, Contender, K, main, read_rows, seconds_of
from processes import read_mapped, size_of

from epithre_beam.index import Catalog, open_catalog

SETTINGS = ("index.build_memory_mb=4096",)


def ours_build(folder: Path, catalog: Path, settings: Sequence[str] = SETTINGS) -> dict[str, Any]:
    """Build with the command. `build_s` is its time without copying the vectors into the catalog.

    It includes start, planning and publishing. `index_told_s` is the manifest's time for the index alone.
    """
    command = [Path(sys.executable).with_name("epithre-beam"), "index", catalog, "--from", folder]
    command += [word for setting in settings for word in ("--set", setting)]
    started = time.perf_counter()
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    command_s = seconds_of(started)
    if ran.returncode:  # 3: a gate holds the version; the message has the recall
        raise SystemExit(f"the command ended with {ran.returncode}: {' '.join(ran.stdout.split())[-400:]}")
    latest = json.loads((catalog / "LATEST.json").read_text())["version"]
    version = catalog / "versions" / latest
    manifest = json.loads((version / "manifest.json").read_text())
    timings = manifest["timings_s"]
    reported = {
        part: sum(took for name, took in timings.items() if name.startswith(part)) for part in ("vectors", "index")
    }
    return {
        "build_s": timings["total"] - reported["vectors"],
        "index_told_s": reported["index"],
        "command_s": command_s,
        "timings_s": timings,
        "indexes": manifest["indexes"],
        "disk_mb": size_of(version / "index"),
        "chosen": ", ".join(str(entry.get("factory", "")) for entry in manifest["indexes"]),
    }


def _is_codes(path: str) -> bool:
    return path.endswith(".codes.faiss")


def _is_store(path: str) -> bool:
    return path.endswith(".faiss") and not _is_codes(path)


class Ours(Contender):
    """The index as a service uses it: the catalog's operating point, hits with their assets."""

    def build(self) -> dict[str, Any]:
        return ours_build(self.data, self.work / "catalog")

    def open(self) -> dict[str, Any]:
        self.catalog: Catalog = open_catalog(self.work / "catalog")
        return {}

    def use_threads(self, count: int) -> None:
        faiss.omp_set_num_threads(count)

    def search(self, kind: str, queries: np.ndarray, k: int) -> np.ndarray:
        found = np.full((len(queries), k), -1, np.int64)
        for q, hits in enumerate(self.catalog.search(queries, k, kinds=(kind,))):  # type: ignore[arg-type]
            found[q, : len(hits)] = [int(hit.asset_id.rpartition("-")[2]) for hit in hits]
        return found

    def measure_more(self, asked: Asked) -> dict[str, Any]:
        """Return the mapped and resident MB of the float16 vectors, and the time of a search without making hits."""
        figures: dict[str, Any] = {
            "mapped_refine_mb": read_mapped(_is_store),
            "mapped_codes_mb": read_mapped(_is_codes),
        }
        figures["index_alone"] = {f"{s}->{t}": self.time_alone(asked, s, t) for s, t in DIRECTIONS}
        for name, verify in (("open_again_s", True), ("open_unverified_s", False)):
            started = time.perf_counter()
            with open_catalog(self.work / "catalog", verify=verify):
                figures[name] = seconds_of(started)
        return figures

    def time_alone(self, asked: Asked, source: str, target: str) -> dict[str, float]:
        index = self.catalog._indexes[target]
        queries = asked.queries[source]
        taken = []
        for i in range(SINGLE):
            started = time.perf_counter()
            index.search(queries[i : i + 1], K, None)
            taken.append(seconds_of(started) * 1000)
        self.use_threads(2)
        started = time.perf_counter()
        index.search(queries, K, None)
        batch = len(queries) / seconds_of(started)
        self.use_threads(1)
        return {
            "median": float(np.median(taken)),
            "p99": float(np.percentile(taken, 99)),
            "batch_a_second": batch,
        }

    def close(self) -> None:
        if hasattr(self, "catalog"):
            self.catalog.close()


class Yardstick(Contender):
    """Reads the vectors and writes them as float16 only: every index must do at least this."""

    def build(self) -> dict[str, Any]:
        read = 0
        for kind in KINDS:
            codec: Any = None
            with (self.work / f"{kind}.f16").open("wb") as file:
                for vectors in read_rows(self.data, kind):
                    # Four times as fast as numpy's conversion.
                    codec = codec or faiss.ScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16)
                    codec.compute_codes(vectors).tofile(file)
                    read += vectors.nbytes
                os.fsync(file.fileno())
        return {"read_mb": read / 1e6, "disk_mb": size_of(self.work)}


if __name__ == "__main__":
    main({"ours": Ours, "yardstick": Yardstick})
