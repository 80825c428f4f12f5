"""Limits on connections, and which connection is dropped for a new one."""

import resource
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epithre_beam.pipelines.serve.connection_limits import Connections, connections_for


@dataclass(eq=False)
class One:
    peer: str
    is_open: bool = field(default=True)

    def drop(self):
        self.is_open = False


def come(connections, peer):
    """The new connection; None when it is refused."""
    if not connections.make_room(peer):
        return None
    one = One(peer)
    connections.add(one)
    return one


def test_the_longest_idle_connection_makes_room():
    connections = Connections(100, 3)
    first, second, third = (come(connections, "192.0.2.1") for _ in range(3))
    connections.wait_for(first, is_waited_for=False)  # a request is in progress
    assert come(connections, "192.0.2.1")
    assert (first.is_open, second.is_open, third.is_open) == (True, False, True)
    connections.wait_for(first, is_waited_for=True)  # answered: from now on it is idle, after the others
    assert come(connections, "192.0.2.1")
    assert (first.is_open, third.is_open) == (True, False)


def test_new_connections_are_refused_when_all_are_busy():
    connections = Connections(2, 2)
    busy = [come(connections, f"192.0.2.{i}") for i in range(2)]
    for one in busy:
        connections.wait_for(one, is_waited_for=False)
    assert come(connections, "192.0.2.9") is None
    assert all(one.is_open for one in busy)
    connections.remove(busy[0])
    assert come(connections, "192.0.2.9")


def test_a_client_is_an_ipv4_address_or_ipv6_network():
    connections = Connections(100, 1)
    first = come(connections, "2001:db8::1")
    assert come(connections, "2001:db8::ffff")
    assert not first.is_open
    second = come(connections, "2001:db8:0:1::1")
    mapped = come(connections, "::ffff:192.0.2.1")
    assert come(connections, "192.0.2.1")
    assert (second.is_open, mapped.is_open) == (True, False)


@pytest.mark.parametrize("peer", ["10.1.2.3", "::ffff:10.1.2.3", "fd00::5", "10.0.0.1"])
def test_a_trusted_proxy_is_only_limited_in_total(peer):
    connections = Connections(5, 1, ["10.0.0.0/8", "fd00::/64"])
    ones = [come(connections, peer) for _ in range(5)]
    assert all(one.is_open for one in ones)
    assert come(connections, peer)
    assert not ones[0].is_open
    for other in ("11.0.0.1", "fd00:0:0:1::1", "", "x", "::1"):
        assert not connections.is_proxy(other)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["come", "answer", "wait", "go"])), max_size=200))
def test_the_limits_hold_and_busy_connections_are_never_dropped(steps):
    connections = Connections(4, 2)
    opened, answered = [], set()
    for peer, what in steps:
        opened = [one for one in opened if one.is_open]
        own = [one for one in opened if one.peer == peer]
        if what == "come" and (one := come(connections, peer)):
            opened.append(one)
        elif own and what == "answer":
            connections.wait_for(own[0], is_waited_for=False)
            answered.add(own[0])
        elif own and what == "wait":
            connections.wait_for(own[0], is_waited_for=True)
            answered.discard(own[0])
        elif own and what == "go":
            connections.remove(own[0])
            own[0].is_open = False
            answered.discard(own[0])
        opened = [one for one in opened if one.is_open]
        assert len(connections) == len(opened) <= 4
        assert all(sum(one.peer == each for one in opened) <= 2 for each in "abcde")
        assert all(one.is_open for one in answered)


def limited(soft, hard, wanted):
    """The result of `connections_for` in a process with a limit of open files, and the limit afterwards."""
    program = (
        "import resource, sys; from epithre_beam.pipelines.serve.connection_limits import connections_for;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        f"print(connections_for({wanted}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return *map(int, done.stdout.split()), done.stderr


def test_the_limit_of_open_files_is_raised_as_needed():
    found, soft, said = limited(256, 8000, 1000)
    assert (found, said) == (1000, "")
    assert 2000 < soft < 8000


@pytest.mark.parametrize("files", [64, 200, 512])
def test_connections_are_limited_by_open_files(files):
    found, soft, said = limited(files, files, 1000)
    assert soft == files
    assert 1 <= found < max(2, files / 2)
    assert f"max_connections: {found} instead of 1000" in said


def test_a_sufficient_file_limit_is_not_changed():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert connections_for(1) == 1
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
