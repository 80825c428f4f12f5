"""Old keys are accepted in manifests of older releases, and refused in jobs with the new key named."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from epithre_beam.configs import CatalogConfig, load_config
from epithre_beam.configs.errors import ConfigError
from epithre_beam.configs.load import load_search_job, parse_config, parse_settings
from epithre_beam.configs.renamed_keys import RENAMED_KEYS, with_current_keys
from epithre_beam.index.versions.manifest import Manifest

TESTS = Path(__file__).resolve().parents[1]
GOLDEN = sorted(
    path
    for place in ("index/golden", "pipelines/jobs/golden")
    for path in (TESTS / place).glob("**/versions/*/manifest.json")
)
SMALL: dict[str, Any] = {"catalog": "c", "sources": [{"kind": "image", "files": "p"}]}


def write(tmp_path: Path, job: dict[str, Any]) -> Path:
    path = tmp_path / "job.yaml"
    path.write_bytes(orjson.dumps(job))  # JSON is YAML
    return path


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({}, {}),
        ({"guards": {"max_dead_share": 0.1}}, {"gates": {"max_dead_share": 0.1}}),
        (
            {"embed": {"budget": "lane", "budget_name": "b", "model": "lane"}},
            {"embed": {"rate_limiter": "memory", "rate_limiter_name": "b", "model": "lane"}},
        ),
        ({"embed": {"budget": "redis"}}, {"embed": {"rate_limiter": "redis"}}),
        ({"embed": {"budget": ["lane"]}, "guards": 3}, {"embed": {"rate_limiter": ["lane"]}, "gates": 3}),
        ({"gates": {"a": 1}, "guards": {"a": 2}}, {"gates": {"a": 1}}),
        ({"embed": None, "index": {"budget": 1}}, {"embed": None, "index": {"budget": 1}}),
    ],
)
def test_a_stored_config_gets_the_current_keys(then: dict[str, Any], now: dict[str, Any]) -> None:
    before = orjson.dumps(then)
    assert with_current_keys(then) == now
    assert with_current_keys(now) == now
    assert orjson.dumps(then) == before


def test_configs_of_golden_catalogs_get_the_current_keys() -> None:
    seen = set()
    for path in GOLDEN:
        stored = orjson.loads(path.read_bytes())
        config = Manifest.model_validate(stored).config
        seen |= {old for old in RENAMED_KEYS if has(stored["config"], old)}
        assert not [old for old in RENAMED_KEYS if has(config, old)]
        settings = parse_settings({**config, "catalog": "c"})
        assert settings.gates.model_dump(mode="json") == CatalogConfig.model_validate(
            {"catalog": "c", "gates": stored["config"].get("guards", {})}
        ).gates.model_dump(mode="json")
        assert settings.embed.rate_limiter == "memory"
    assert seen == set(RENAMED_KEYS)


def has(config: dict[str, Any], place: str) -> bool:
    section, _, key = place.rpartition(".")
    return key in (config.get(section, {}) if section else config)


@pytest.mark.parametrize(
    ("old", "sentence"),
    [
        ({"guards": {"max_dead_share": 0.5}}, "guards is now gates. Rename the key."),
        ({"embed": {"budget": "host"}}, "embed.budget is now embed.rate_limiter. Rename the key."),
        ({"embed": {"budget_name": "b"}}, "embed.budget_name is now embed.rate_limiter_name. Rename the key."),
    ],
)
def test_an_old_key_is_refused_and_the_new_one_named(tmp_path: Path, old: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({**SMALL, **old})
    assert str(refused.value) == sentence
    with pytest.raises(ConfigError) as refused:
        load_config(write(tmp_path, {**SMALL, **old}))
    assert sentence in str(refused.value)


def test_an_old_value_is_refused_with_the_new_one_named() -> None:
    with pytest.raises(ConfigError, match=r"^embed\.rate_limiter must be .* got 'lane'\. 'lane' is now 'memory'\.$"):
        parse_config({**SMALL, "embed": {"rate_limiter": "lane"}})


def test_an_old_key_in_set_is_refused_with_the_new_one_named(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    with pytest.raises(ConfigError, match=r"guards is now gates\. Rename the key"):
        load_config(path, ["guards.max_dead_share=1"])
    with pytest.raises(ConfigError, match=r"embed\.budget is now embed\.rate_limiter. Rename the key"):
        load_config(path, ["embed.budget=redis"])
    with pytest.raises(ConfigError, match=r"^--set guards\.max_shrinkage: guards is now gates. Rename the key\.$"):
        parse_settings({"catalog": "c"}, ["guards.max_shrinkage=1"], ("index", "gates", "runner"))


def test_an_old_key_of_a_search_is_refused_with_the_new_one_named(tmp_path: Path) -> None:
    job = {"catalog": "c", "output": "o", "assets": [{"kind": "image"}], "guards": {"max_dead_share": 1}}
    with pytest.raises(ConfigError, match=r"guards is now gates\. Rename the key"):
        load_search_job(write(tmp_path, job))
