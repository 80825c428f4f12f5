"""Several lanes share the job's rate limiter backend with the job's limits; a single lane has its own."""

import tempfile
from pathlib import Path

import pytest

from epithre_beam.configs import EmbedConfig
from epithre_beam.configs.errors import RateLimiterLostError
from epithre_beam.transforms.embedding.host_backend import HostBackend
from epithre_beam.transforms.embedding.shared_limit import remove_shared_backend, set_up_shared_backend, shared_backend
from epithre_beam.transforms.epithre.rate_limit.redis_backend import RedisBackend

from ...conftest import RedisServer
from ...ports import free_port


def test_memory_backend_is_not_shared() -> None:
    embed = EmbedConfig()
    set_up_shared_backend(embed, "run", 3)
    assert shared_backend(embed, "run", 3) is None


def test_host_lanes_share_one_rate_limiter_per_run() -> None:
    embed = EmbedConfig(rate_limiter="host", lanes=2, requests_per_minute=600, tokens_per_minute=None, timeout_s=7.0)
    one, same, other = (shared_backend(embed, run, 3) for run in ("a", "a", "b"))
    assert isinstance(one, HostBackend)
    assert isinstance(other, HostBackend)
    assert one == same
    assert one.name != other.name
    assert one.settings.limits == {"requests": 600}
    assert (one.settings.hold_s, one.settings.spent) == (7.0, 3)


def test_requests_of_launcher_count_for_every_redis_lane(redis_server: RedisServer) -> None:
    embed = EmbedConfig(rate_limiter="redis", redis_url=redis_server.url, lanes=2, requests_per_minute=3)
    set_up_shared_backend(embed, "run", 3)
    for run in ("run", "another run of the same key"):
        backend = shared_backend(embed, run, 0)
        assert isinstance(backend, RedisBackend)
        assert backend.try_acquire({"requests": 1.0}).lease is None


def test_unreachable_redis_raises_before_lanes_start() -> None:
    embed = EmbedConfig(rate_limiter="redis", redis_url=f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(RateLimiterLostError, match="cannot be reached"):
        set_up_shared_backend(embed, "run", 0)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_host_rate_limiter_leaves_no_file_after_its_run(temporary: Path) -> None:
    embed = EmbedConfig(rate_limiter="host", lanes=2)
    for run in ("first", "second"):
        backend = shared_backend(embed, run, 0)
        assert backend is not None
        assert backend.try_acquire({"requests": 1.0}).lease is not None
    (folder,) = temporary.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.suffix for path in folder.iterdir()} == {".address", ".lock"}
    remove_shared_backend(embed, "first")
    assert {path.stem for path in folder.iterdir()} == {f"epithre-beam-{embed.rate_limiter_name}-second"}
    assert backend.try_acquire({"requests": 1.0}).lease is not None  # the rate limiter of another run still works
    remove_shared_backend(embed, "second")
    remove_shared_backend(embed, "second")  # on another host, or already removed
    assert not list(folder.iterdir())


@pytest.mark.parametrize("made", ["writable by others", "a link", "a file"])
def test_host_rate_limiter_refuses_folder_writable_by_others(temporary: Path, made: str) -> None:
    embed = EmbedConfig(rate_limiter="host", lanes=2)
    backend = shared_backend(embed, f"before {made}", 0)
    assert backend is not None
    assert backend.try_acquire({"requests": 1.0}).lease is not None
    remove_shared_backend(embed, f"before {made}")
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
    other = shared_backend(embed, made, 0)
    assert other is not None
    with pytest.raises(RateLimiterLostError, match="set TMPDIR"):
        other.try_acquire({"requests": 1.0})
