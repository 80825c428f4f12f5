"""A model of how a catalog is published and pruned: the rules hold in every order of steps, and each is needed.

Three writers, an operator who puts older versions in force, and a pruner take turns at random, a step on the store
at a time. They crash anywhere, their requests are refused, lost, or done long after they were given up, and clocks
run on while they sleep, so that leases end and two hold the catalog at once. What is decided from what was read is
decided by the functions of the library.
"""

import datetime
import random
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from epithre_beam.configs.errors import CatalogError, SwapConflictError
from epithre_beam.index import Store, read_latest, read_manifest
from epithre_beam.index.publish.publish import check_end, fence, publish
from epithre_beam.index.versions.holder import check_holder
from epithre_beam.index.versions.latest import condemned_in, latest_bytes
from epithre_beam.index.versions.layout import LATEST, manifest_name

from ..manifests import make_manifest

TTL_S = 30
EPOCH = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)

Steps = Generator[None, None, Any]
Answer = Literal["done", "refused", "lost"]
By = Literal["writer", "operator", "pruner"]


class Violation(AssertionError):  # noqa: N818 - what it is
    """A promise was broken."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of the protocol; each can be broken."""

    swap: bool = True
    """LATEST is written on a condition, not after a look."""
    nonce: bool = True
    """No content of LATEST returns."""
    fence: bool = True
    """The pruner swaps LATEST onto itself before it deletes."""
    condemn: bool = True
    """The fence names what will go."""
    token_first: bool = True
    """LATEST is read before anything that is decided from it."""
    unknown: bool = True
    """An end that is not known is not told as a failure."""
    chain: bool = True
    """How an attempt ended is read from the versions before the one in force."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    nonce: int
    agent: int
    life: int
    host: str
    renewed_s: int


@dataclass
class World:
    rules: Rules
    rng: random.Random
    now_s: int = 0
    latest: bytes | None = None
    named: dict[bytes, str] = field(default_factory=dict)
    """Which version a content of LATEST names."""
    manifests: dict[str, str | None] = field(default_factory=dict)
    """The versions that are whole, each with its previous one."""
    lease: Lease | None = None
    under_way: list[tuple[bytes | None, bytes, "By"]] = field(default_factory=list)
    """Requests that nobody waits for any more: expected, data, from whom."""
    history: list[tuple[str, "By"]] = field(default_factory=list)
    """What was put in force, and by whom."""
    given_up: set[str] = field(default_factory=set)
    won: set[bytes | None] = field(default_factory=set)
    lives: dict[int, int] = field(default_factory=dict)
    numbers: int = 0
    seen: Counter[str] = field(default_factory=Counter)

    # The steps that a store does at once.

    def apply(self, expected: bytes | None, data: bytes, by: By) -> bool:
        if self.rules.swap and self.latest != expected:
            return False
        if by != "pruner":
            self.promise_a_publication(self.named[data], by)
        self.latest = data
        return True

    def request(self, expected: bytes | None, data: bytes, by: By) -> Answer:
        """A conditional write over a network."""
        fate = self.rng.random()
        if fate < 0.12:
            if fate < 0.05:
                self.apply(expected, data, by)
            elif fate < 0.10:
                self.under_way.append((expected, data, by))
            return "lost"
        return "done" if self.apply(expected, data, by) else "refused"

    def deliver(self) -> None:
        if self.under_way:
            late = self.under_way.pop(self.rng.randrange(len(self.under_way)))
            self.seen["done late" if self.apply(*late) else "refused late"] += 1

    # The promises.

    def promise_a_publication(self, version: str, by: By) -> None:
        if version not in self.manifests:
            raise Violation(f"{version} is published and is not whole")
        current_version = None if self.latest is None else self.named[self.latest]
        if by == "writer":
            if version in self.given_up:
                raise Violation(f"{version} is published after its writer was told that it is not")
            if self.manifests[version] != current_version:
                raise Violation(f"{version} is published over {current_version}, which it does not know")
        self.history.append((version, by))

    def promise_always(self) -> None:
        if self.latest is not None and self.named[self.latest] not in self.manifests:
            raise Violation(f"LATEST names {self.named[self.latest]}, which was deleted")

    def promise_the_truth(self, end: str, version: str, expected: bytes | None) -> None:
        """What a writer is told of its version. An operator may have put it in force before the writer came to it."""
        at = next((i for i, entry in enumerate(self.history) if entry == (version, "writer")), None)
        if end == "published":
            if all(name != version for name, _ in self.history):
                raise Violation(f"{version} is not published, but its writer was told that it is")
            if at is not None and expected in self.won:
                raise Violation("two were told that they have published from the same state")
            self.won |= set() if at is None else {expected}
        if end == "conflict":
            self.given_up.add(version)
            # Unless it was taken out of force again, which is as good as not being published.
            if at is not None and all(by == "writer" for _, by in self.history[at + 1 :]):
                raise Violation(f"{version} is published, but its writer was told that it is not")

    def content(self, version: str, condemned: Iterable[str]) -> bytes:
        if self.rules.nonce:
            data = latest_bytes(version, "0" * 64, condemned)
        else:
            data = f"{version} {sorted(set(condemned))}".encode()
        self.named[data] = version
        return data

    def condemned(self, latest: bytes | None) -> tuple[str, ...]:
        if latest is None or not self.rules.condemn:
            return ()
        return condemned_in(latest) if self.rules.nonce else tuple(latest.decode().split("'")[1::2])


def take_lease(world: World, agent: int, host: str) -> Generator[None, None, bool]:
    found = world.lease
    yield
    if found is not None:
        is_dead = found.life != world.lives[found.agent]
        state: Any = "unknown" if found.host != host else "dead" if is_dead else "alive"
        then, now = (EPOCH + datetime.timedelta(seconds=s) for s in (found.renewed_s, world.now_s))
        verdict = check_holder(state, then, TTL_S, now)
        if verdict == "busy":
            return False
        if verdict == "watch":
            since_s = world.now_s
            while world.now_s < since_s + TTL_S:
                yield
                if world.lease != found:
                    return False
            world.seen["watched"] += 1
    if world.lease != found:
        return False
    world.seen["replaced" if found else "taken"] += 1
    world.numbers += 1
    world.lease = Lease(nonce=world.numbers, agent=agent, life=world.lives[agent], host=host, renewed_s=world.now_s)
    return True


def ended(world: World, version: str, expected: bytes | None) -> Generator[None, None, str]:
    """`how_it_ended`, with a step between any two reads."""
    found = world.latest
    yield
    chain: list[str | None] = []
    name = None if found is None else world.named[found]
    while name is not None:
        chain.append(name)
        yield
        if not world.rules.chain:
            break
        if name not in world.manifests:
            chain.append(None)
            break
        name = world.manifests[name]
    began = None if expected is None else world.named[expected]
    end = check_end(version, expected, began, found, chain)
    world.seen["published and followed"] += end == "published" and chain[0] != version
    return end


def make_current(world: World, version: str, expected: bytes | None, by: By) -> Steps:
    """`publish`."""
    condemned = world.condemned(expected)
    if version in condemned:
        world.seen["refused as condemned"] += 1
        return
    data = world.content(version, condemned)
    if not world.rules.swap:
        if world.latest != expected:
            return
        yield  # a look, and then the write
    answer = world.request(expected, data, by)
    yield
    if answer == "done":
        end = "published"
    else:
        end = yield from ended(world, version, expected)
        world.seen[f"{end} after an answer that was {answer}"] += 1
        if end == "unknown" and not world.rules.unknown:
            end = "conflict"
    if by == "writer":
        world.promise_the_truth(end, version, expected)


def write(world: World, agent: int, host: str) -> Steps:
    if not (yield from take_lease(world, agent, host)):
        return
    expected = world.latest if world.rules.token_first else None
    yield
    parent = None if world.latest is None else world.named[world.latest]
    if world.rules.token_first:
        parent = None if expected is None else world.named[expected]
    world.numbers += 1
    version = f"{world.numbers:06d}"
    for _ in range(3):  # units, shards, indexes
        yield
        renew(world, agent)
    world.manifests[version] = parent
    yield
    if not world.rules.token_first:
        expected = world.latest
        yield
    yield from make_current(world, version, expected, "writer")
    yield
    give_back(world, agent)


def go_back(world: World, agent: int, host: str) -> Steps:
    """An operator puts a version in force that exists. No lease is asked for: a run must not stand in the way."""
    for _ in range(world.rng.randrange(100)):
        yield
    expected = world.latest
    yield
    if not world.manifests:
        return
    version = world.rng.choice(list(world.manifests))
    yield
    if version not in world.manifests:  # it is verified, which takes its time
        return
    yield
    if not world.rules.token_first:
        expected = world.latest
        yield
    yield from make_current(world, version, expected, "operator")


def prune(world: World, agent: int, host: str) -> Steps:
    if not (yield from take_lease(world, agent, host)):
        return
    kept = None if world.latest is None else world.named[world.latest]
    yield
    listed = [version for version in world.manifests if version != kept]
    goes = [version for version in listed if world.rng.random() < 0.7]
    yield
    if kept is None or not goes:
        give_back(world, agent)
        return
    if world.rules.fence:
        expected = world.latest
        assert expected is not None
        version = world.named[expected]
        yield
        if world.rules.condemn and version in goes:
            give_back(world, agent)
            return
        earlier = [name for name in world.condemned(expected) if name in world.manifests]
        data = world.content(version, [*earlier, *goes] if world.rules.condemn else ())
        if not world.rules.condemn:
            goes = [name for name in goes if name != version]
        if world.request(expected, data, "pruner") != "done":
            give_back(world, agent)
            return
    for version in goes:
        yield
        renew(world, agent)  # whether it is still held does not matter
        if world.manifests.pop(version, None) is not None:
            world.seen["deleted"] += 1
    give_back(world, agent)


def renew(world: World, agent: int) -> None:
    lease = world.lease
    if lease is not None and (lease.agent, lease.life) == (agent, world.lives[agent]):
        world.lease = Lease(**{**lease.__dict__, "renewed_s": world.now_s})
    else:
        world.seen["went on without the lease"] += 1


def give_back(world: World, agent: int) -> None:
    lease = world.lease
    if lease is not None and (lease.agent, lease.life) == (agent, world.lives[agent]):
        world.lease = None


ROLES: tuple[tuple[Callable[[World, int, str], Steps], str], ...] = (
    (write, "a"),
    (write, "a"),
    (write, "b"),
    (prune, "b"),
    (go_back, "c"),
)


def explore(seed: int, rules: Rules, steps: int) -> Counter[str]:
    """Plays one history of so many steps; raises Violation."""
    rng = random.Random(seed)
    world = World(rules, rng, lives=dict.fromkeys(range(len(ROLES)), 0))
    agents = [role(world, i, host) for i, (role, host) in enumerate(ROLES)]
    asleep_until = [0] * len(ROLES)
    for step in range(steps):
        dice = rng.random()
        if dice < 0.04:
            world.deliver()
        elif dice < 0.06:
            world.now_s += rng.choice((1, 5, TTL_S + 1))
        else:
            world.now_s += rng.random() < 0.1
            i = rng.randrange(len(ROLES))
            if step < asleep_until[i]:
                continue
            if dice > 0.97:  # a machine that is suspended, a request that hangs
                asleep_until[i] = step + rng.choice((20, 100, 300))
                continue
            is_over = dice < 0.065
            if is_over:
                world.seen["crashed"] += 1
            else:
                try:
                    next(agents[i])
                except StopIteration:
                    is_over = True
            if is_over:
                world.lives[i] += 1
                role, host = ROLES[i]
                agents[i] = role(world, i, host)
        world.promise_always()
    world.seen.update(f"published by {by}" for _, by in world.history)
    return world.seen


@pytest.mark.slow
def test_no_order_of_steps_breaks_a_promise() -> None:
    seen: Counter[str] = Counter()
    for seed in range(5000):
        seen += explore(seed, Rules(), 1000)
    for what in (
        "published by writer",
        "published by operator",
        "deleted",
        "crashed",
        "watched",
        "replaced",
        "went on without the lease",
        "done late",
        "refused late",
        "refused as condemned",
        "published after an answer that was lost",
        "conflict after an answer that was lost",
        "unknown after an answer that was lost",
        "conflict after an answer that was refused",
        "published and followed",
    ):
        assert seen[what] > 5, (what, seen)  # the model does what it says


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        ("swap", "which it does not know|from the same state|deleted"),
        ("nonce", "after its writer was told|from the same state|deleted|not whole"),
        ("fence", "deleted|not whole"),
        ("condemn", "deleted|not whole"),
        ("token_first", "which it does not know|deleted|not whole"),
        ("unknown", "after its writer was told"),
        ("chain", "was told that it is not"),
    ],
)
def test_each_rule_is_needed(broken: str, promise: str) -> None:
    rules = Rules(**{broken: False})
    violations = (first_violation(seed, rules) for seed in range(4000))
    assert any(re.search(promise, violation) for violation in violations if violation)


def first_violation(seed: int, rules: Rules) -> str | None:
    try:
        explore(seed, rules, 1000)
    except Violation as violation:
        return str(violation)
    return None


# ---------------------------------------------------------------------------------------------------- the code itself


def attempt(step: Callable[[Store, random.Random], Any], url: str, seed: int, times: int) -> list[Any]:
    """What the step returns when it comes through, so many times as it is tried."""
    rng, done = random.Random(seed), []
    for _ in range(times):
        try:
            result = step(Store(url), rng)
        except (SwapConflictError, CatalogError):
            continue
        if result is not None:
            done.append(result)
    return done


def write_version(store: Store, rng: random.Random) -> tuple[bytes, str]:
    """Returns what it has published over, and its version."""
    latest = read_latest(store)
    assert latest is not None
    version = f"{int(latest.version.split('-')[0]) + 1:06d}-{rng.getrandbits(64):016x}"
    publish(store, make_manifest(store, version, latest.version), latest.data)
    return latest.data, version


def make_an_old_one_current(store: Store, rng: random.Random) -> str:
    """Returns the version; it may be one whose writer has not come to publish it."""
    latest = read_latest(store)
    assert latest is not None
    version = rng.choice(store.names("versions")).split("/")[1]
    publish(store, read_manifest(store, version), latest.data)
    return version


def prune_some(store: Store, rng: random.Random) -> None:
    latest = read_latest(store)
    assert latest is not None
    names = [name.split("/")[1] for name in store.names("versions")]
    goes = [name for name in names if name != latest.version and rng.random() < 0.7]
    if fence(store, goes) is not None:
        for name in goes:
            store.delete(manifest_name(name))


def look(store: Store, rng: random.Random) -> bytes | None:
    """LATEST.json, when it names a version that is not there, and still did when that was seen."""
    before = store.read(LATEST)
    latest = read_latest(store)
    assert latest is not None
    if store.size(manifest_name(latest.version)) is None and store.read(LATEST) == latest.data == before:
        return before
    return None


def test_writers_an_operator_and_a_pruner_at_once_never_leave_a_pointer_to_nothing(tmp_path: Path) -> None:
    url = str(tmp_path)
    publish(Store(url), make_manifest(Store(url), "000001-first", None), None)
    roles = [write_version, write_version, write_version, make_an_old_one_current, prune_some, look]
    with ThreadPoolExecutor(len(roles)) as pool:
        tasks = [pool.submit(attempt, role, url, seed, 60) for seed, role in enumerate(roles)]
        *writers, chosen, _, dangling = [task.result() for task in tasks]
    assert dangling == []
    # A writer whose version the operator has put in force is told that it is published, whoever was first.
    published_over = [over for writer in writers for over, version in writer if version not in chosen]
    assert len(published_over) == len(set(published_over)) > 10
    latest = read_latest(Store(url))
    assert latest is not None
    read_manifest(Store(url), latest.version, latest.manifest_sha256)
