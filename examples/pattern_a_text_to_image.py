"""Pattern A of the guide: index images once, then find them by a description.

    make demo && .venv/bin/python examples/pattern_a_text_to_image.py demo/job.yaml "sepeda merah"

The guide's loop sends one image per request and keeps the vectors in a list. A job sends batches within the rate
limit, and a second run pays only for new images.
"""

import sys

from epithre_beam.configs import load_config
from epithre_beam.pipelines.jobs.run import run
from epithre_beam.pipelines.jobs.search import search

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    job = load_config(sys.argv[1])
    run(job)
    _, results = search(job.catalog, sys.argv[2:], k=5, kinds=("image",))
    for query, hits in zip(sys.argv[2:], results, strict=True):
        print(query)
        for hit in hits:
            print(f"  {hit.score:.3f}  {hit.asset_id}")
