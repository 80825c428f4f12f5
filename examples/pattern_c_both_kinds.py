"""Pattern C of the guide: one search over texts and pictures together, by a sentence or a picture.

    .venv/bin/python examples/pattern_c_both_kinds.py demo/catalog "kucing oren"

The guide keeps both kinds in one table with one index. Across kinds such an index finds nothing (a text query's
nearest cells hold only texts), so a catalog has an index a kind and merges their answers: by the inner product as it
is, as in the guide, or in turns, so that neither kind crowds out the other.
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
