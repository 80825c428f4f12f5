"""Requests of a catalog are allowed by a job of the same user, by the environment, or not at all."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epithre_beam.configs import CatalogConfig, EmbedConfig, PrepareConfig, RunConfig
from epithre_beam.configs.errors import CatalogError, UntrustedCatalogError
from epithre_beam.index.local.trust import (
    CATALOGS_VARIABLE,
    Trust,
    allowed_embed,
    allowed_prepare,
    asks,
    check_rebuild,
)

OWN = EmbedConfig().model_dump(mode="json")
GATEWAY: dict[str, Any] = {**OWN, "base_url": "https://gateway.example/v1", "api_key_env": "GATEWAY_KEY"}


@pytest.fixture(autouse=True)
def nothing_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPITHRE_BEAM_TRUST", str(tmp_path / "trust"))


def config(**embed: Any) -> dict[str, Any]:
    return {"embed": {**OWN, **embed}}


def test_provider_and_emulator_need_no_permission() -> None:
    assert asks({}) == asks(config()) == asks(config(base_url="emulator")) == []
    assert allowed_embed(config(), "c", {}) == OWN


@pytest.mark.parametrize(
    ("stated", "options"),
    [
        ({"base_url": "http://127.0.0.1:1/v1", "api_key_env": "AWS_SECRET_ACCESS_KEY"}, "base_url and api_key_env"),
        ({"base_url": "https://api.epithre.com.evil.example/v1"}, "base_url"),
        ({"base_url": "https://api.epithre.com:8443/v1"}, "base_url"),
        ({"base_url": "http://api.epithre.com/v1", "allow_plain_http": True}, "base_url"),
        ({"api_key_env": "PGPASSWORD"}, "api_key_env"),
        ({"api_key_env": "EPITHRE_KEY2"}, "api_key_env"),
    ],
    ids=str,
)  # fmt: skip
def test_other_address_or_key_variable_needs_permission(stated: dict[str, Any], options: str) -> None:
    with pytest.raises(UntrustedCatalogError) as caught:
        allowed_embed(config(**stated), "their catalog", {})
    message = str(caught.value)
    assert message.startswith("their catalog asks to send the key in ")
    assert all(str(value) in message for value in stated.values() if value is not True)
    assert f"set {options}, or " in message
    assert "epithre-beam trust 'their catalog'" in message
    assert caught.value.exit_code == 2


def test_user_settings_override_and_unsafe_settings_are_dropped() -> None:
    said = {"base_url": "https://mine.example/v1", "api_key_env": "MINE"}
    embed = allowed_embed({"embed": {**GATEWAY, "allow_plain_http": True, "lanes": 1000}}, "c", said)
    assert (embed["base_url"], embed["api_key_env"]) == ("https://mine.example/v1", "MINE")
    assert not {"allow_plain_http", "lanes", "rate_limiter", "redis_url"} & embed.keys()
    assert embed["dimension"] == OWN["dimension"]
    with pytest.raises(UntrustedCatalogError, match=r"set api_key_env, or "):  # an address alone names no key
        allowed_embed({"embed": GATEWAY}, "c", {"base_url": "https://mine.example/v1"})
    with pytest.raises(UntrustedCatalogError, match=r"set base_url, or "):
        allowed_embed({"embed": GATEWAY}, "c", {"api_key_env": "MINE"})


def test_untrusted_manifest_cannot_allow_plain_http() -> None:
    said = {"base_url": "http://mine.example/v1"}
    assert "allow_plain_http" not in allowed_embed(config(allow_plain_http=True), "c", said)
    own = {**GATEWAY, "base_url": "http://gateway.example/v1", "allow_plain_http": True}
    Trust().remember_job(CatalogConfig.model_validate({"catalog": "c", "embed": own}))
    assert allowed_embed({"embed": own}, "c", said)["allow_plain_http"] is True


def test_catalog_may_request_what_a_job_of_the_user_does() -> None:
    job = RunConfig.model_validate(
        {
            "catalog": "c",
            "sources": [
                {"kind": "image", "table": "t.csv", "id": "id", "uri": "uri", "within": ["s3://a/b"]},
                {"kind": "image", "files": "photos/**/*.jpg"},
                {"kind": "text", "files": "texts"},
            ],
            "embed": {**GATEWAY, "rate_limiter": "redis", "redis_url": "redis://r/0", "redis_password_env": "R"},
            "index": {"queries": "queries.parquet"},
            "runner": "PrismRunner",
            "beam_options": ["--parallelism=4"],
        }
    )
    stated = job.model_dump(mode="json")
    assert len(asks(stated)) == 7
    assert Trust().refused(asks(stated), "c") == asks(stated)
    Trust().remember_job(job)
    assert Trust().refused(asks(stated), "moved to elsewhere") == []
    assert allowed_embed(stated, "c", {}) == stated["embed"]
    check_rebuild(stated, job, "c")


def test_untrusted_redis_is_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    Trust().remember_job(CatalogConfig.model_validate({"catalog": "c", "embed": GATEWAY}))
    redis = {"rate_limiter": "redis", "redis_url": "redis://theirs:6379/0", "redis_password_env": "DATABASE_PASSWORD"}
    embed = allowed_embed({"embed": {**GATEWAY, **redis}}, "c", {})
    assert embed["base_url"] == GATEWAY["base_url"]
    assert not redis.keys() & embed.keys()
    assert "redis://theirs:6379/0" in caplog.text
    assert "counted separately" in caplog.text


def test_catalogs_named_in_the_environment_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CATALOGS_VARIABLE, f"s3://bucket/catalog/ {os.getcwd()}/here")  # noqa: PTH109
    for catalog in ("s3://bucket/catalog", "here", "./here/"):
        assert allowed_embed({"embed": GATEWAY}, catalog, {}) == GATEWAY
    for catalog in ("s3://bucket/catalog2", "here/below", "/here"):
        with pytest.raises(UntrustedCatalogError):
            allowed_embed({"embed": GATEWAY}, catalog, {})


def test_rebuild_refuses_untrusted_runner_options_and_queries() -> None:
    for change in (
        {"runner": "PortableRunner"},
        {"beam_options": ["--setup_file=/tmp/x.py"]},
        {"index": {"queries": "s3://q"}},
    ):
        stated = {"catalog": "c", **change}
        with pytest.raises(UntrustedCatalogError, match=r"^c asks to (run|read queries)"):
            check_rebuild(stated, CatalogConfig.model_validate(stated), "c")
    # Settings of the user are allowed, whatever the manifest has.
    stated = {"catalog": "c", "runner": "PortableRunner", "beam_options": ["--sdk_location=x"]}
    with pytest.raises(UntrustedCatalogError, match="sdk_location"):
        check_rebuild(stated, CatalogConfig.model_validate({**stated, "runner": "FnApiRunner"}), "c")
    check_rebuild({"runner": "Other"}, CatalogConfig.model_validate({"catalog": "c"}), "c")


def test_untrusted_limits_are_capped_at_the_defaults() -> None:
    wide = {"max_file_bytes": 10**15, "max_decode_pixels": 10**15, "decode_timeout_s": 1e9, "max_text_chars": 10**12}
    wide |= {"max_side": 10**9}
    found = allowed_prepare({"prepare": {**wide, "max_pixels": 5}}, "c")
    assert found["max_file_bytes"] <= 64_000_000
    assert found["decode_timeout_s"] <= 20
    assert found["max_text_chars"] <= 32_000
    assert found["max_side"] <= 100_000
    assert found["max_pixels"] == 5
    assert allowed_prepare({"prepare": {"max_text_chars": 10}}, "c")["max_text_chars"] == 10
    for unstated in ({}, {"prepare": {}}):
        assert PrepareConfig.model_validate(allowed_prepare(unstated, "c")) == PrepareConfig()


@given(st.text(), st.text())
def test_requests_are_equal_only_for_equal_values(one: str, other: str) -> None:
    a, b = (asks({"embed": {**GATEWAY, "base_url": text}}) for text in (one, other))
    assert (a == b) == (one == other)
    assert not re.search("[\x00-\x1f\x7f-\x9f]", "".join(a))


def test_trust_folder_writable_by_others_allows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = asks({"embed": GATEWAY})
    Trust().add(ask)
    assert Trust().allows(ask[0], "c")
    (tmp_path / "trust").chmod(0o777)
    assert not Trust().allows(ask[0], "c")
    with pytest.raises(CatalogError, match="EPITHRE_BEAM_TRUST"):
        Trust().add(ask)
    monkeypatch.delenv("EPITHRE_BEAM_TRUST")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    assert not Trust().allows(ask[0], "c")
    Trust().add(ask)
    assert Trust().allows(ask[0], "c")
