"""Pattern B of the guide: find the texts that describe a photo.

.venv/bin/python examples/pattern_b_image_to_text.py demo/catalog demo/images/0004-*.jpg
"""

import sys
from pathlib import Path

from epithre_beam.pipelines.jobs.search import search

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    images = [Path(name).read_bytes() for name in sys.argv[2:]]
    _, results = search(sys.argv[1], images, k=3, kinds=("text",))
    for name, hits in zip(sys.argv[2:], results, strict=True):
        print(Path(name).name)
        for hit in hits:
            print(f"  {hit.score:.3f}  {hit.text}")
