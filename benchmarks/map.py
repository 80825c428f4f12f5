"""CPU time, memory and truth of the map: PCA alone, and PCA with t-SNE, on seeded vectors of 4,000 dimensions.

Truth is scikit-learn's trustworthiness: how much of a point's neighbourhood on the map are neighbours in the catalog,
1 at best; and how mixed the kinds are: the share of each point's ten neighbours that are of the other kind, 0.5 at
best.

Then the seconds that 1,000 points take beside as many busy processes as there are cores, on one thread and on all.

Run by `python benchmarks/map.py [POINTS,…]`, with `OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1` for seconds of one core.
"""

import argparse
import os
import resource
import subprocess
import sys
import time

import numpy as np
from figures import Recording, Table, add_results_option
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from epithre_beam.transforms.viewing.catalog_map import align_kinds, project

DIMENSION = 4000
CLUSTERS = 40


def vectors_with_a_gap(points: int) -> tuple[np.ndarray, list[str]]:
    """Half pictures, half texts, of the same clusters, each kind with an offset of its own."""
    rng = np.random.default_rng(points)
    strengths = np.arange(1, DIMENSION + 1) ** -0.5
    centres = rng.standard_normal((CLUSTERS, DIMENSION)) * strengths
    kinds = ["image", "text"] * (points // 2)
    drawn = (
        centres[rng.integers(0, CLUSTERS, len(kinds))] + 0.5 * rng.standard_normal((len(kinds), DIMENSION)) * strengths
    )
    offsets = {kind: rng.standard_normal(DIMENSION) * strengths for kind in ("image", "text")}
    drawn += np.stack([offsets[kind] for kind in kinds])
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32), kinds


def mixture(places: np.ndarray, kinds: list[str]) -> float:
    near = NearestNeighbors(n_neighbors=11).fit(places).kneighbors(return_distance=False)
    names = np.array(kinds)
    return float((names[near] != names[:, None]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", nargs="?", default="1000,2000,5000")
    add_results_option(parser)
    options = parser.parse_args()
    recording = Recording.start("map", options)
    maps, figures = [], {}
    for points in map(int, options.points.split(",")):
        vectors, kinds = vectors_with_a_gap(points)
        for name, shown in (("as they are", vectors), ("aligned", align_kinds(vectors, kinds))):
            for way in ("PCA", "PCA, t-SNE"):
                started = time.process_time()
                if way == "PCA":
                    places = PCA(2, svd_solver="randomized", random_state=0).fit_transform(shown)
                else:
                    places = project(shown)
                seconds = time.process_time() - started
                main_axes = PCA(50, svd_solver="randomized", random_state=0).fit_transform(shown)
                truth = trustworthiness(main_axes, places, n_neighbors=10)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
                mixed = mixture(places, kinds)
                maps.append(
                    (f"{points:,}", name, way, f"{seconds:.1f}", f"{truth:.3f}", f"{mixed:.2f}", f"{peak:,.0f}")
                )
                if (points, name, way) == (5000, "aligned", "PCA, t-SNE"):
                    figures = {"cpu_s": seconds, "peak_mb": peak}

    vectors, _ = vectors_with_a_gap(1000)
    cores = os.cpu_count() or 1
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    beside = []
    try:
        for threads in (1, cores):
            started = time.perf_counter()
            project(vectors, threads=threads)
            beside.append((str(threads), str(cores), f"{time.perf_counter() - started:.1f}"))
    finally:
        for process in busy:
            process.kill()
    columns = ("points", "kinds", "way", "CPU s", "trustworthiness", "of the other kind", "peak MB")
    recording.store(
        figures,
        {
            "Maps": Table(columns, maps),
            "1,000 assets beside busy processes": Table(("threads", "busy processes", "s"), beside),
        },
    )


if __name__ == "__main__":
    main()
