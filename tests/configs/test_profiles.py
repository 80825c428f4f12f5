"""A profile sets defaults for `embed`, which are validated like settings of the config."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs import EmbedConfig, RunConfig, load, load_config
from epithre_beam.configs.errors import ConfigError
from epithre_beam.configs.load import parse_config

SHIPPED = Path(load.__file__).parent / "profiles"
NAMES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
SMALL = {"catalog": "c", "sources": [{"kind": "text", "files": "*.txt"}]}
SECRET = "sk-Zk93hfU2mQp8Lw7XcVb1"


def read(
    folder: Path, embed: Any, overrides: tuple[str, ...] = (), environ: Mapping[str, str] | None = None, **profiles: Any
) -> RunConfig:
    """Loads a config with this `embed` section; the profiles are YAML text or plain data."""
    for name, profile in profiles.items():
        text = profile if isinstance(profile, str) else yaml.safe_dump(profile)
        (folder / f"{name}.yaml").write_text(text, "utf-8")
    (folder / "job.yml").write_text(yaml.safe_dump({**SMALL, "embed": embed}), "utf-8")
    return load_config(folder / "job.yml", overrides, environ)


def refusal(folder: Path, embed: Any, **profiles: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, embed, **profiles)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ what is shipped

LIMITS = {
    "openai": {
        "requests_per_minute": 3000,
        "tokens_per_minute": 1_000_000,
        "batch_items": 2048,
        "batch_tokens": 300_000,
        "batch_bytes": 4_000_000,
    },
    "voyage": {
        "requests_per_minute": 2000,
        "tokens_per_minute": 2_000_000,
        "batch_items": 1000,
        "batch_bytes": 4_000_000,
    },
    "cohere": {"items_per_minute": 400, "batch_items": 96, "batch_bytes": 20_000_000},
    "jina": {"requests_per_minute": 500, "max_concurrency": 5, "batch_items": 512, "batch_bytes": 4_000_000},
    "gateway": {"batch_bytes": 4_000_000},
}


def test_the_schema_names_all_built_in_profiles() -> None:
    assert set(NAMES) == set(LIMITS)
    description = EmbedConfig.model_fields["profile"].description
    assert description is not None
    assert all(name in description for name in NAMES)


@pytest.mark.parametrize("name", LIMITS)
def test_a_built_in_profile_sets_only_limits(tmp_path: Path, name: str) -> None:
    """It sets neither an address nor the name of a key, so it cannot change where a key is sent."""
    plain = EmbedConfig().model_dump()
    found = read(tmp_path, {"profile": name}).embed.model_dump()
    assert {**plain, **LIMITS[name], "profile": name} == found


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_profile_states_its_age_and_the_other_settings(tmp_path: Path, name: str) -> None:
    text = (SHIPPED / f"{name}.yaml").read_text("utf-8")
    assert "# Age: " in text
    said = dict(re.findall(r"^#   (\w+): (.+)$", text, flags=re.MULTILINE))
    assert set(said) == {"dialect", "base_url", "model", "dimension", "api_key_env"}
    if name != "gateway":  # its model and dimension are not known
        config = read(tmp_path, {"profile": name, **{key: yaml.safe_load(value) for key, value in said.items()}})
        assert config.embed.dialect == name


# ------------------------------------------------------------------------------------------------ what holds


@settings(max_examples=60, deadline=None)
@given(
    profile=st.dictionaries(st.sampled_from(["batch_items", "readers", "max_sends"]), st.integers(1, 99)),
    own=st.dictionaries(st.sampled_from(["batch_items", "readers", "memory_mb"]), st.integers(1, 99)),
)
def test_the_config_overrides_the_profile_and_the_profile_the_defaults(
    tmp_path_factory: pytest.TempPathFactory, profile: dict[str, int], own: dict[str, int]
) -> None:
    folder = tmp_path_factory.mktemp("profile")
    found = read(folder, {"profile": "mine.yaml", **own}, mine=profile).embed
    plain = read(folder, {**profile, **own}).embed
    assert found == plain.model_copy(update={"profile": str(folder / "mine.yaml")})


def test_null_in_the_config_removes_a_limit_of_the_profile(tmp_path: Path) -> None:
    assert read(tmp_path, {"profile": "jina", "requests_per_minute": None}).embed.requests_per_minute is None


def test_set_and_variables_name_profiles_and_override_them(tmp_path: Path) -> None:
    config = read(tmp_path, {}, ("embed.profile=openai", "embed.batch_items=5"))
    assert (config.embed.batch_items, config.embed.batch_tokens) == (5, 300_000)
    config = read(tmp_path, {"profile": "${P}"}, environ={"P": "./mine.yaml", "N": "7"}, mine={"batch_items": "${N}"})
    assert config.embed.batch_items == 7


def test_a_profiles_path_starts_at_the_configs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "limits").mkdir()
    (tmp_path / "limits" / "mine").write_text("batch_items: 3\n")
    monkeypatch.chdir("/")
    for name in ("limits/mine", "./limits/../limits/mine", str(tmp_path / "limits" / "mine")):
        embed = read(tmp_path, {"profile": name}).embed
        assert (embed.batch_items, embed.profile) == (3, str(tmp_path / "limits" / "mine"))


def test_a_file_named_like_a_built_in_profile_does_not_replace_it(tmp_path: Path) -> None:
    embed = read(tmp_path, {"profile": "jina"}, jina={"batch_items": 1}).embed
    assert embed.batch_items == LIMITS["jina"]["batch_items"]


def test_a_loaded_config_does_not_need_its_profile(tmp_path: Path) -> None:
    """A manifest stores the config, and is read on machines without the profile."""
    config = read(tmp_path, {"profile": "mine.yaml"}, mine={"batch_items": 9})
    (tmp_path / "mine.yaml").unlink()
    assert parse_config(config.model_dump(mode="json")) == config


def test_a_profile_may_set_every_key_of_the_section(tmp_path: Path) -> None:
    mine = {"dialect": "vllm", "base_url": "http://localhost:8000/v1", "model": "m", "dimension": 512}
    embed = read(tmp_path, {"profile": "mine.yaml"}, mine=mine).embed
    assert (embed.dialect, embed.model, embed.dimension) == ("vllm", "m", 512)


# ------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("voyag", "embed.profile 'voyag' is not a known profile. Did you mean 'voyage'?"),
        (
            "zzz",
            f"embed.profile 'zzz' is not a known profile. Use one of {', '.join(NAMES)}, or the path of a YAML file.",
        ),
        (
            "https://host/limits.yaml",
            "embed.profile must be the name of a built-in profile or a local path, got 'https://host/limits.yaml'.",
        ),
        (3, "embed.profile must be a valid string, got 3."),
        ("", "embed.profile must have at least 1 character, got ''."),
        (["jina"], "embed.profile must be a valid string, got a list of 1."),
    ],
)
def test_an_unknown_profile_is_refused(tmp_path: Path, name: Any, sentence: str) -> None:
    assert refusal(tmp_path, {"profile": name}).partition(": ")[2] == sentence


def test_a_wrong_value_is_reported_with_its_origin(tmp_path: Path) -> None:
    mine = {"batch_items": 0, "batch_byts": 5000, "timeout_s": -1}
    embed = {"profile": "mine.yaml", "timeout_s": 0, "readers": 0}
    job, profile = tmp_path / "job.yml", tmp_path / "mine.yaml"
    assert refusal(tmp_path, embed, mine=mine).splitlines() == [
        f"{job} has 4 errors:",
        f"{job} line 4, column 12: embed.readers must be at least 1, got 0.",
        f"{job} line 5, column 14: embed.timeout_s must be greater than 0, got 0.",
        f"{profile} line 1, column 1: embed.batch_byts is not a known key. Did you mean 'batch_bytes'?",
        f"{profile} line 2, column 14: embed.batch_items must be at least 1, got 0.",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("batch_items: [", "line 1, column 15: this is not valid YAML"),
        (
            "batch_items: 1\nbatch_items: 2\n",
            "line 2, column 1: `batch_items` occurs twice",
        ),
        ("", "a profile must be a mapping of keys such as `batch_items`"),
        ("- jina\n", "a profile must be a mapping of keys such as `batch_items`"),
        ("profile: jina\n", "a profile must not contain `profile`"),
        ("batch_items: &a [*a]\n", "contains itself"),
    ],
    ids=["open", "twice", "empty", "list", "nested", "cycle"],
)
def test_an_invalid_profile_file_is_refused_with_its_name(tmp_path: Path, text: str, problem: str) -> None:
    message = refusal(tmp_path, {"profile": "mine.yaml"}, mine=text)
    assert message.startswith(str(tmp_path / "mine.yaml"))
    assert problem in message


def test_an_unreadable_profile_file_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("model: é\n".encode("latin-1"))
    for name in ("absent.yaml", "./", "latin.yaml", "./a\0b"):
        assert refusal(tmp_path, {"profile": name}).startswith(str(tmp_path))


def test_an_unset_variable_in_a_profile_is_reported_with_its_place(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"profile": "mine.yaml"}, mine={"model": "${NOWHERE_AT_ALL}"})
    place = f"{tmp_path / 'mine.yaml'} line 1, column 8: "
    assert message.startswith(f"{place}embed.model uses the environment variable NOWHERE_AT_ALL, which is not set.")


@pytest.mark.parametrize("form", ["{}", "Bearer {}", "https://me:{}@host/v1", "https://host/v1?key={}"])
def test_a_secret_as_a_profile_name_never_appears_in_the_error(tmp_path: Path, form: str) -> None:
    assert SECRET not in refusal(tmp_path, {"profile": form.format(SECRET)})


def test_a_secret_in_a_profile_never_appears_in_the_error(tmp_path: Path) -> None:
    for key in ("api_key", "api_key_env", "base_url", "batch_items"):
        message = refusal(tmp_path, {"profile": "mine.yaml"}, mine={key: SECRET})
        assert f"embed.{key}" in message
        assert SECRET not in message
