"""One of several processes that race for a file: it connects, prints `ready`, and waits for the start."""

import json
import sys

from epithre_beam.configs.errors import SwapConflictError
from epithre_beam.index.storage.store import Store


def count_up(store: Store, who: int, times: int) -> bool:
    """Try to create the file, then swap it `times` times from n to n + 1. Return whether the create succeeded."""
    try:
        store.create("n", b"0 by %d" % who)
    except FileExistsError:
        won = False
    else:
        won = True
    while times:
        found = store.read("n")
        try:
            store.swap("n", found, b"%d by %d left %d" % (int(found.split()[0]) + 1, who, times))
        except SwapConflictError:
            continue
        times -= 1
    return won


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    racing = Store(order["url"], order["options"])
    racing.size("n")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    sys.stdout.write("won\n" if count_up(racing, int(sys.argv[2]), 10) else "lost\n")
