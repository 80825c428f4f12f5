"""Lanes and steps with the same key and address share a backend, which is named without revealing the key."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
import redis

from epithre_beam.configs import EmbedConfig
from epithre_beam.configs.errors import RateLimiterLostError
from epithre_beam.transforms.embedding.host_backend import HostBackend
from epithre_beam.transforms.embedding.limiters import remove_host_limiter
from epithre_beam.transforms.embedding.shared_limit import (
    backend_name,
    limiter_name,
    make_backend,
    set_up_shared_backend,
)

from ...conftest import RedisServer
from ...ports import free_port


def test_name_is_shared_by_a_key_and_an_address_and_does_not_reveal_the_key() -> None:
    names = [
        limiter_name(EmbedConfig(base_url=f"http://localhost:{port}/v1"), key)
        for port in (1, 2)
        for key in ("sk-12345", "sk-12346")
    ]
    assert len(set(names)) == 4
    assert limiter_name(EmbedConfig(base_url="http://localhost:1/v1"), "sk-12345") == names[0]
    cheap = {hashlib.new(kind, b"sk-12345").hexdigest()[:24] for kind in ("md5", "sha1", "sha256", "sha512")}
    assert not cheap & set(names)
    assert all("sk-1234" not in name for name in names)
    assert limiter_name(EmbedConfig(rate_limiter_name="mine"), "sk-12345") == "mine"


def test_host_lanes_share_one_rate_limiter_per_run() -> None:
    embed = EmbedConfig(rate_limiter="host", lanes=2, requests_per_minute=600, tokens_per_minute=None, timeout_s=7.0)
    one, same, other = (make_backend(embed, "key", run=run, spent=3) for run in ("a", "a", "b"))
    assert isinstance(one, HostBackend)
    assert isinstance(other, HostBackend)
    assert one == same
    assert one.name != other.name
    assert one.settings.limits == {"requests": 600}
    assert (one.settings.hold_s, one.settings.spent) == (7.0, 3)


def test_steps_on_a_host_count_together_if_key_address_and_limits_are_the_same() -> None:
    def name(key: str = "key", **settings: Any) -> str:
        return backend_name(EmbedConfig(rate_limiter="host", requests_per_minute=600).model_copy(update=settings), key)

    assert name() == name(batch_items=3)
    others = [{"key": "other"}, {"base_url": "http://localhost:1/v1"}, {"requests_per_minute": 7}]
    assert len({name(), *(name(**other) for other in others)}) == 4
    assert name(rate_limiter_name="mine") == name("other", rate_limiter_name="mine") != name()


def redis_embed(server: RedisServer, **settings: Any) -> EmbedConfig:
    return EmbedConfig(rate_limiter="redis", redis_url=server.url, lanes=2, **settings)


def is_free(embed: EmbedConfig, key: str) -> bool:
    return make_backend(embed, key, run="run").try_acquire({"requests": 1.0}).lease is not None


def test_requests_of_launcher_count_for_every_user_of_the_key_in_redis(redis_server: RedisServer) -> None:
    embed = redis_embed(redis_server, requests_per_minute=3)
    set_up_shared_backend(embed, "key", "run", 3)
    assert not is_free(embed, "key")
    assert not is_free(redis_embed(redis_server, requests_per_minute=2), "key")
    assert not is_free(redis_embed(redis_server, requests_per_minute=2, batch_items=9), "key")


def test_another_key_or_address_counts_alone_in_redis(redis_server: RedisServer) -> None:
    embed = redis_embed(redis_server, requests_per_minute=3)
    elsewhere = embed.model_copy(update={"base_url": "http://localhost:1/v1"})
    set_up_shared_backend(embed, "key", "run", 3)
    for other, key in ((embed, "another key"), (elsewhere, "key")):
        set_up_shared_backend(other, key, "another run", 0)
        assert is_free(other, key)
    assert not is_free(embed, "key")


def test_a_name_joins_keys_in_redis(redis_server: RedisServer) -> None:
    embed = redis_embed(redis_server, requests_per_minute=3, rate_limiter_name="mine")
    set_up_shared_backend(embed, "key", "run", 3)
    set_up_shared_backend(embed, "another key", "another run", 0)
    assert not is_free(embed, "another key")


def test_redis_does_not_learn_the_key(redis_server: RedisServer) -> None:
    set_up_shared_backend(redis_embed(redis_server, requests_per_minute=3), "sk-12345", "run", 3)
    with redis.Redis.from_url(redis_server.url) as client:
        names = client.keys("*")
        assert names
        dumped = b"".join(name + (client.dump(name) or b"") for name in names)
    assert b"sk-12345" not in dumped


def test_unreachable_redis_raises_before_lanes_start() -> None:
    embed = EmbedConfig(rate_limiter="redis", redis_url=f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(RateLimiterLostError, match="cannot be reached"):
        set_up_shared_backend(embed, "key", "run", 0)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_host_rate_limiter_leaves_no_file_after_its_run(temporary: Path) -> None:
    embed = EmbedConfig(rate_limiter="host", lanes=2)
    for run in ("first", "second"):
        backend = make_backend(embed, "key", run=run)
        assert backend is not None
        assert backend.try_acquire({"requests": 1.0}).lease is not None
    (folder,) = temporary.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.suffix for path in folder.iterdir()} == {".address", ".lock"}
    remove_host_limiter(embed, "first")
    assert {path.stem for path in folder.iterdir()} == {"epithre-beam-epithre-second"}
    assert backend.try_acquire({"requests": 1.0}).lease is not None  # the rate limiter of another run still works
    remove_host_limiter(embed, "second")
    remove_host_limiter(embed, "second")  # on another host, or already removed
    assert not list(folder.iterdir())


@pytest.mark.parametrize("made", ["writable by others", "a link", "a file"])
def test_host_rate_limiter_refuses_folder_writable_by_others(temporary: Path, made: str) -> None:
    embed = EmbedConfig(rate_limiter="host", lanes=2)
    backend = make_backend(embed, "key", run=f"before {made}")
    assert backend is not None
    assert backend.try_acquire({"requests": 1.0}).lease is not None
    remove_host_limiter(embed, f"before {made}")
    (folder,) = temporary.iterdir()
    folder.rmdir()
    if made == "a file":
        folder.touch()
    elif made == "a link":
        (temporary / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(temporary / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    other = make_backend(embed, "key", run=made)
    assert other is not None
    with pytest.raises(RateLimiterLostError, match="set TMPDIR"):
        other.try_acquire({"requests": 1.0})
