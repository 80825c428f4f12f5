"""A process that lists a bucket's images as a run does, and prints time and memory."""

import hashlib
import json
import re
import sys
import time
from pathlib import Path

from epithre_beam.configs import SourceConfig
from epithre_beam.transforms.sources.list_sources import list_references

if __name__ == "__main__":
    source = SourceConfig(kind="image", files=f"{sys.argv[1]}/**/*.jpg")
    began = time.monotonic()
    count, digest, last, is_sorted = 0, hashlib.sha256(), "", True
    for table in list_references(source, 0, {}):
        for name in table.column("asset_id").to_pylist():
            is_sorted, last = is_sorted and last < name, name
            digest.update(name.encode())
            count += 1
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    reported = {
        "count": count,
        "sha256": digest.hexdigest(),
        "is_sorted": is_sorted,
        "seconds": round(time.monotonic() - began, 2),
        "peak_mb": int(peak[1]) / 1024 if peak else 0,
    }
    sys.stdout.write(json.dumps(reported) + "\n")
