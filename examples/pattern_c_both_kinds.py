"""Pattern C of the guide: one search over texts and images, by a sentence or an image.

    .venv/bin/python examples/pattern_c_both_kinds.py demo/catalog "kucing oren"

The guide keeps both kinds in one table with one index. Such an index finds nothing across kinds, because the nearest
cells of a text query contain only texts. A catalog has one index per kind and merges the hits: by inner product, as
in the guide, or in turns (`quota`), so that both kinds appear.
"""

import sys
from pathlib import Path

from epithre_beam.pipelines.jobs.search import search

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    catalog_url, query = sys.argv[1:3]
    image = Path(query)
    what = image.read_bytes() if image.is_file() else query
    for merge in ("score", "quota"):
        _, (hits,) = search(catalog_url, [what], k=6, kinds=None, merge=merge)
        print(f"merged by {merge}")
        for hit in hits:
            print(f"  {hit.score:.3f}  {hit.kind:5s}  {hit.text or hit.asset_id}")
