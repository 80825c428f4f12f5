"""What each rung of the ladder gives on the same vectors: which of them are worth having (decision 010).

    python benchmarks/rungs.py [--rows 50000] [--spectrum B] [--seed 0]

Images as rows, texts as queries, recall at 10 against exact search. Every rung but the exact ones proposes
candidates that are scored by the vectors as fp16. The best of three passes for each time.
"""

import argparse
import time
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
from clustered import BLOCK_ROWS, KINDS, Clustered
from figures import Recording, Table, add_results_option

from epithre_beam.index.ann.codes import Projected, build_codes, cells_for, code_rows
from epithre_beam.index.ann.projection import fit_axes

Floats = npt.NDArray[np.float32]

_TRAINING = 6144
_QUERIES = 300
_SIZES = (128, 256, 512)
_IP = faiss.METRIC_INNER_PRODUCT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_176)
    parser.add_argument("--spectrum", default="B")
    parser.add_argument("--seed", type=int, default=0)
    add_results_option(parser)
    options = parser.parse_args()
    recording, lines = Recording.start("rungs", options), []
    data = Clustered(options.spectrum, options.seed)
    rows = options.rows // BLOCK_ROWS * BLOCK_ROWS
    vectors = np.concatenate([data.rows("image", block) for block in range(rows // BLOCK_ROWS)])
    asked = data.queries("text", _QUERIES)
    exact = np.argsort(-(asked @ vectors.T), axis=1)[:, :10]
    samples = [np.concatenate([data.rows(k, b) for b in range(_TRAINING // BLOCK_ROWS)]) for k in KINDS]
    began = time.perf_counter()
    axes = fit_axes(samples, _SIZES[-1], options.seed)
    print(f"axes fitted in {time.perf_counter() - began:.1f} s\n")
    store = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, _IP)
    store.add(vectors)

    def report(name: str, base: Any, build_s: float, factor: float, inner: Any = None) -> None:
        size = len(faiss.serialize_index(base)) / rows
        index = store if base is store else faiss.IndexRefine(base, store)
        parameters = None
        if base is not store:
            parameters = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)
        _, found = index.search(asked, 10, params=parameters)
        recall = sum(len(set(one) & set(other)) for one, other in zip(found, exact, strict=True)) / exact.size
        batch, single = [], []
        for _ in range(3):
            began = time.perf_counter()
            index.search(asked, 10, params=parameters)
            batch.append(time.perf_counter() - began)
            faiss.omp_set_num_threads(1)
            began = time.perf_counter()
            for query in asked[:50]:
                index.search(query[None], 10, params=parameters)
            single.append((time.perf_counter() - began) / 50)
            faiss.omp_set_num_threads(2)
        speeds = (f"{_QUERIES / min(batch):,.0f}", f"{1000 * min(single):.2f}")
        lines.append((name, f"{size:,.0f}", f"{build_s:.1f}", f"{recall:.3f}", *speeds))

    report("exact, fp16", store, 0.0, 1)
    projected = np.concatenate([part @ axes.T for part in np.array_split(vectors, 20)])
    held = Projected(vectors=projected.astype(np.float16), order=np.arange(rows), axes=axes, seed=options.seed)
    for size in _SIZES:
        for cells in (1, cells_for(rows)):
            began = time.perf_counter()
            codes = build_codes(held, code_rows(held, size), cells)
            build_s = time.perf_counter() - began
            for share in (1.0,) if cells == 1 else (0.1, 0.3):
                inner = faiss.SearchParametersPreTransform(
                    index_params=faiss.IVFSearchParameters(nprobe=max(1, round(share * cells)))
                )
                for factor in (5, 20):
                    report(
                        f"{size} codes of 4 bits, {cells} cells, {share:.0%} scanned, factor {factor}",
                        codes,
                        build_s,
                        factor,
                        inner,
                    )
    transform = faiss.LinearTransform(vectors.shape[1], 256, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(axes[:256]).ravel(), transform.A)
    transform.is_trained = True
    began = time.perf_counter()
    plain = faiss.IndexPreTransform(transform, faiss.IndexScalarQuantizer(256, faiss.ScalarQuantizer.QT_fp16, _IP))
    plain.add(vectors)
    report("256 axes as fp16, factor 5", plain, time.perf_counter() - began, 5)
    began = time.perf_counter()
    bits = faiss.index_factory(vectors.shape[1], "IVF1,RaBitQfs", _IP)
    bits.train(samples[0])
    bits.add(vectors)
    report("one bit a dimension (IVF1,RaBitQfs), factor 5", bits, time.perf_counter() - began, 5)
    columns = ("rung", "bytes a vector", "build s", "recall", "queries/s in a batch", "one query, ms")
    recording.store({}, {"Rungs": Table(columns, lines)})


if __name__ == "__main__":
    main()
