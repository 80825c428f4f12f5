"""What a killed pipeline left is deleted when it is certainly dead; what a running one has is never deleted."""

import os
import secrets
import time

import pytest

from epithre_beam.index import Store
from epithre_beam.index.vectors.hidden_folder import DEAD_AFTER_S, SIGN_EVERY_S, SignOfLife, delete_dead

from ...s3_server import s3_store


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    if request.param == "local":
        return Store(str(tmp_path))
    return s3_store(request.getfixturevalue("s3_server").port, secrets.token_hex(8))


def test_only_folders_without_a_sign_of_life_are_deleted(store):
    """The storage's clock decides: everything that is older than the youngest of the others is dead."""
    for name in (".writing-old", "vectors"):
        store.write(f"{name}/part.parquet", b"x")
        store.write(f"{name}/deep/.part.partial", b"x")
    deadline = time.monotonic() + 30
    while time.time() - max(file.modified_s for file in store.listing()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    store.write(".writing-young/part.parquet", b"x")
    store.write(".writing-own/part.parquet", b"x")
    assert delete_dead(store, ".writing-own", dead_after_s=2.5) == [".writing-young"]
    tops = {file.name.partition("/")[0] for file in store.listing()}
    assert tops == {".writing-young", ".writing-own", "vectors"}


def test_a_week_without_a_sign_is_needed_and_one_sign_is_enough(tmp_path):
    store = Store(str(tmp_path))
    now = time.time()
    for name, age_s in (("dead", DEAD_AFTER_S + 60), ("quiet", DEAD_AFTER_S - 60), ("alive", 2 * DEAD_AFTER_S)):
        store.write(f".writing-{name}/part", b"x")
        os.utime(tmp_path / f".writing-{name}" / "part", (now - age_s, now - age_s))
    times = iter([0.0, SIGN_EVERY_S - 1, SIGN_EVERY_S, SIGN_EVERY_S])
    sign = SignOfLife(store, ".writing-alive", clock=lambda: next(times))
    sign.give()
    assert [path.name for path in (tmp_path / ".writing-alive").iterdir()] == ["part"]
    sign.give()
    assert len(list((tmp_path / ".writing-alive").iterdir())) == 2
    assert delete_dead(store, ".writing-own") == [".writing-alive", ".writing-quiet"]
    assert not (tmp_path / ".writing-dead").exists()
