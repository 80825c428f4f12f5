"""Many lanes that share one limit in Redis, simulated: what reaches the server, and what it costs Redis.

    python benchmarks/lanes.py [--limits 600,6000,60000] [--lanes 1,10,100,1000] [--seconds 180] [--measure-redis]

The rules are those of the program: the `MemoryBackend` in `transforms/epithre/rate_limit/memory_backend.py` on a
simulated clock, which the script in Redis follows line by line, and the waits of `RateLimiter` (`next_wait_s`). Time
is simulated: a call takes `--rtt` and waits for its turn, since Redis does one at a time (`--call-us`, which
`--measure-redis` measures on a redis-server of its own); a request takes 0.2 to 1.5 s, and the server counts it
somewhere on its way. Every lane always has something to send. For each number of lanes: the share of the limit that
was reached after the first window, the most requests in any 60 s as a share of the limit (above 100 % would be a
breach), calls a second, how busy Redis is, and the requests of the luckiest and the unluckiest lane.
"""

import argparse
import heapq
import itertools
import random
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from figures import Recording, Table, add_results_option

from epithre_beam.transforms.epithre.rate_limit.memory_backend import WINDOW_S, MemoryBackend, RateLimiterSettings
from epithre_beam.transforms.epithre.rate_limit.rate_limiter import next_wait_s

_WEIGHTS = {"requests": 1.0}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def simulate(
    lanes: int, limit: int, seconds: float, rtt_s: float, call_s: float, wait: Callable[..., float]
) -> dict[str, float]:
    """Runs the lanes for so many simulated seconds."""
    clock, rng = Clock(), random.Random(lanes * limit)
    backend = MemoryBackend(RateLimiterSettings(limits={"requests": float(limit)}), clock)
    serial = itertools.count()
    events: list[tuple[float, int, str, int, object]] = []

    def at(when: float, what: str, lane: int, data: object = None) -> None:
        heapq.heappush(events, (when, next(serial), what, lane, data))

    for lane in range(lanes):
        at(rng.random(), "ask", lane)
    refusals = [0] * lanes
    sent = [0] * lanes
    free_at = busy = 0.0
    calls = 0
    arrived: list[float] = []
    while events:
        now, _, what, lane, data = heapq.heappop(events)
        if now > seconds:
            break
        if what in {"ask", "tell"}:
            begin = max(now + rtt_s / 2, free_at)  # Redis does one call after the other
            free_at = begin + call_s
            busy += call_s
            calls += 1
            at(free_at, "run " + what, lane, data)
        elif what == "run tell":
            clock.now = now
            backend.answered(str(data))
        elif what == "run ask":
            clock.now = now
            answer = backend.try_acquire(_WEIGHTS)
            if answer.lease is None:
                refusals[lane] += 1
                at(now + rtt_s / 2 + wait(answer.wait_s, refusals[lane], rng), "ask", lane)
                continue
            refusals[lane] = 0
            sent[lane] += 1
            took = rng.uniform(0.2, 1.5)
            arrived.append(now + rtt_s / 2 + rng.random() * took)
            at(now + rtt_s / 2 + took, "tell", lane, answer.lease)
            at(now + rtt_s / 2, "ask", lane)
    arrived.sort()
    window: deque[float] = deque()
    most = 0
    for moment in arrived:
        window.append(moment)
        while window[0] <= moment - WINDOW_S:
            window.popleft()
        most = max(most, len(window))
    steady = [moment for moment in arrived if WINDOW_S < moment <= seconds]
    return {
        "share": len(steady) / (limit * (seconds - WINDOW_S) / 60),
        "most": most / limit,
        "calls_a_second": calls / seconds,
        "busy": busy / seconds,
        "least": min(sent),
        "greatest": max(sent),
    }


def measure_call_s(calls: int = 3000) -> float:
    """Seconds that Redis is busy with one call of a full ledger, by its own statistics."""
    import redis

    from epithre_beam.transforms.epithre.rate_limit.redis_backend import RedisBackend

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "redis.sock"
        command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not path.exists():
                time.sleep(0.01)
            connection = redis.Redis(unix_socket_path=str(path))
            backend = RedisBackend(f"unix://{path}", "bench", RateLimiterSettings(limits={"requests": 1e9}))
            backend.create(spent=0)
            connection.config_resetstat()
            for _ in range(calls):
                answer = backend.try_acquire({"requests": 1.0, "items": 64.0, "tokens": 8000.0})
                backend.answered(answer.lease or "")
            stats = connection.info("commandstats")
            script = [value for name, value in stats.items() if name.startswith("cmdstat_eval")]
            return sum(s["usec"] for s in script) / sum(s["calls"] for s in script) / 1e6
        finally:
            server.terminate()
            server.wait()


def everyone_wakes(wait_s: float, refusals: int, rng: random.Random) -> float:
    """What was done before: each lane comes back when the next request may go, and all but one in vain."""
    return min(wait_s, 1.0)


def to_row(limit: int, lanes: int, name: str, run: dict[str, float]) -> list[str]:
    shares = [f"{run['share']:.1%}", f"{run['most']:.1%}", f"{run['calls_a_second']:,.0f}", f"{run['busy']:.0%}"]
    return [f"{limit:,}", f"{lanes:,}", name, *shares, f"{run['least']:,} to {run['greatest']:,} requests"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", default="600,6000,60000", help="requests a minute")
    parser.add_argument("--lanes", default="1,10,100,1000")
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--rtt", type=float, default=0.001, help="seconds to Redis and back")
    parser.add_argument("--call-us", type=float, default=90.0, help="that Redis is busy with one call")
    parser.add_argument("--measure-redis", action="store_true", help="measure --call-us on a redis-server of its own")
    add_results_option(parser)
    options = parser.parse_args()
    recording = Recording.start("lanes", options)
    call_s = measure_call_s() if options.measure_redis else options.call_us / 1e6
    print(f"a call: {1e6 * call_s:.0f} us of Redis, {1000 * options.rtt:g} ms there and back\n")
    runs: dict[tuple[int, int, str], dict[str, float]] = {}
    for limit in map(int, options.limits.split(",")):
        for lanes in map(int, options.lanes.split(",")):
            for name, wait in (("all at once", everyone_wakes), ("spread", next_wait_s)):
                runs[limit, lanes, name] = simulate(lanes, limit, options.seconds, options.rtt, call_s, wait)
    spread = [run for (_, _, name), run in runs.items() if name == "spread"]
    figures = {"least_share": min(run["share"] for run in spread), "most": max(run["most"] for run in spread)}
    if options.measure_redis:
        figures["call_us"] = 1e6 * call_s
    for figure, key, value in (
        ("busy", (6000, 1000, "spread"), "busy"),
        ("busy_everyone", (6000, 1000, "all at once"), "busy"),
        ("calls_a_second", (60_000, 1000, "spread"), "calls_a_second"),
    ):
        if key in runs:
            figures[figure] = runs[key][value]
    columns = ("limit a minute", "lanes", "waits", "of the limit", "most in 60 s", "calls/s", "Redis busy", "of a lane")
    recording.store(figures, {"Lanes": Table(columns, [to_row(*key, run) for key, run in runs.items()])})


if __name__ == "__main__":
    main()
