"""A config is loaded, or refused with messages that say where, what is wrong and what to do."""

import os
import random
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from epithre_beam.configs import RunConfig, load_config
from epithre_beam.configs.errors import ConfigError
from epithre_beam.configs.load import parse_config

IMAGES = {"kind": "image", "files": "pictures/*.jpg"}
TEXTS = {"kind": "text", "table": "captions.csv", "id": "sku", "text": "caption"}
SMALL = {"catalog": "catalog", "sources": [IMAGES]}
SECRET = "sk-Zk93hfU2mQp8Lw7XcVb1"
SECTIONS = ("embed", "prepare", "index", "gates")


def load(
    folder: Path, raw: Any, overrides: tuple[str, ...] = (), environ: Mapping[str, str] | None = None
) -> RunConfig:
    """Loads `raw`, YAML text or plain data, from a file in `folder`."""
    path = folder / "job.yaml"
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw), "utf-8")
    return load_config(path, overrides, environ)


def refusal(raw: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    return str(caught.value)


def with_embed(**settings: Any) -> dict[str, Any]:
    return {**SMALL, "embed": settings}


def with_source(**changes: Any) -> dict[str, Any]:
    return {**SMALL, "sources": [{**IMAGES, **changes}]}


def bounds() -> Iterator[tuple[str, str, str, float]]:
    """(section, key, JSON Schema's word for the bound, bound) of every number in the schema."""
    schema = RunConfig.model_json_schema()
    for section in SECTIONS:
        definition = schema["$defs"][schema["properties"][section]["$ref"].rsplit("/", 1)[-1]]
        for key, rule in definition["properties"].items():
            for form in (rule, *rule.get("anyOf", ())):
                for word in ("minimum", "maximum", "exclusiveMinimum"):
                    if word in form:
                        yield section, key, word, form[word]


BOUNDS = list(bounds())


# ---------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("section", ["", "sources", *SECTIONS])
def test_a_misspelt_key_is_refused_with_a_suggestion(section: str) -> None:
    rng = random.Random(section)
    annotation = RunConfig if not section else RunConfig.model_fields[section].annotation
    model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else annotation.__args__[0]
    names = [name for name in model.model_fields if len(name) >= 5]
    assert names
    for name in names:
        at = rng.randrange(1, len(name) - 1)
        for wrong in (name[:at] + name[at + 1 :], name[:at] + name[at] + name[at:], name + "s"):
            if section == "sources":
                raw, place = with_source(**{wrong: 1}), f"sources[0].{wrong}"
            elif section:
                raw, place = {**SMALL, section: {wrong: 1}}, f"{section}.{wrong}"
            else:
                raw, place = {**SMALL, wrong: 1}, wrong
            assert f"{place} is not a known key. Did you mean {name!r}?" in refusal(raw)


def test_a_key_without_a_similar_one_lists_the_known_keys() -> None:
    message = refusal({**SMALL, "gates": {"zzz": 1}})
    assert message == "gates.zzz is not a known key. Known under `gates`: max_dead_share, max_shrinkage, max_turnover."


def test_the_schema_has_bounds_to_test() -> None:
    assert len(BOUNDS) > 25


@pytest.mark.parametrize(("section", "key", "word", "bound"), BOUNDS, ids=lambda value: str(value))
def test_a_number_out_of_bounds_is_refused_with_path_rule_and_value(
    section: str, key: str, word: str, bound: float
) -> None:
    phrase, wrong = {
        "minimum": ("at least", bound - 1),
        "maximum": ("at most", bound + 1),
        "exclusiveMinimum": ("greater than", bound),
    }[word]
    message = refusal({**SMALL, section: {key: wrong}})
    assert message.startswith(f"{section}.{key} must be {phrase} {bound:g}, got ")
    assert float(message.rpartition("got ")[2].rstrip(".")) == wrong
    inside = bound if word != "exclusiveMinimum" else bound + 0.5
    needed = {"price_per_1000_items": 1.0} if key == "max_cost" else {}
    assert getattr(getattr(parse_config({**SMALL, section: {key: inside, **needed}}), section), key) == inside


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"sources": [IMAGES]}, "catalog is missing. Add it."),
        ({"catalog": "c"}, "sources is missing. Add it."),
        ({"catalog": "c", "sources": []}, "sources must have at least 1 entry, got a list of 0."),
        ({"catalog": "", "sources": [IMAGES]}, "catalog must have at least 1 character, got ''."),
        (with_source(kind="imgae"), "sources[0].kind must be 'image' or 'text', got 'imgae'. Did you mean 'image'?"),
        (with_source(files=""), "sources[0].files must have at least 1 character, got ''."),
        (with_source(table="t.csv"), "sources[0]: the source needs either `files` or `table`. Set"),
        (with_source(files=None), "sources[0]: the source needs either `files` or `table`. Set exactly one of them."),
        (with_source(id="sku"), "sources[0]: `id` applies only to a source with a `table`. Remove it, or"),
        (with_source(metadata={"a": "int"}), "sources[0]: `metadata` applies only to a source with a `table`."),
        (
            with_source(files=None, table="t.csv", id="id", text="t", kind="text", metadata={"\x1b": "int"}),
            (
                "sources[0]: names of metadata columns must have at most 1000 characters and no control characters, "
                "got '\\x1b'."
            ),
        ),
        (with_source(files=None, table="t.csv"), "sources[0]: the table has no `id` column. Set `id`"),
        (
            with_source(files=None, table="t.csv", id="sku", uri="u", bytes="b"),
            "sources[0]: a table of images needs either `uri` or `bytes`, without `text`. Set exactly one of them.",
        ),
        (
            {**SMALL, "sources": [IMAGES, {**TEXTS, "text": None}]},
            "sources[1]: a table of texts needs `text`, without `uri` and `bytes`. Set `text` to the name of",
        ),
        (
            {**SMALL, "sources": [{**TEXTS, "metadata": {"lang": "strng"}}]},
            "sources[0].metadata.lang must be 'string', 'int', 'double', 'bool', 'date' or 'timestamp', got 'strng'.",
        ),
        (
            {**SMALL, "sources": [{**TEXTS, "metadata": {"a": "int"}}, {**TEXTS, "metadata": {"a": "double"}}]},
            "the config: metadata column 'a' is int in one source and double in another. Use one type.",
        ),
        (
            {**SMALL, "prepare": {"send_formats": ["webp"]}},
            "prepare: `send_formats` has neither jpeg nor png, which other formats are re-encoded to. Add one of them.",
        ),
        (
            with_embed(base_url="ftp://host/v1"),
            "embed.base_url must be an http(s) URL or the word `emulator`, got 'ftp",
        ),
        ({**SMALL, "embed": "fast"}, "embed must be a mapping of keys, got 'fast'."),
        ({**SMALL, "embed": None}, "embed must be a mapping of keys, got nothing. Indent its keys below it."),
        (with_embed(timeout_s=float("nan")), "embed.timeout_s must be a finite number, got nan."),
        (
            with_embed(batch_items=1.5),
            "embed.batch_items must be a whole number, got 1.5.",
        ),
        (
            with_embed(requests_per_minute="600/min"),
            "embed.requests_per_minute must be a whole number, got '600/min'.",
        ),
        ({**SMALL, "gates": {"max_dead_share": "5%"}}, "gates.max_dead_share must be a number, got '5%'."),
        (
            with_embed(api_key_env="sk-1234"),
            "embed.api_key_env must be the name of an environment variable, such as EPITHRE_KEY, not the key itself.",
        ),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_each_rule_reports_path_rule_and_value(raw: dict[str, Any], sentence: str) -> None:
    assert refusal(raw).startswith(sentence)


def test_all_errors_are_reported_at_once() -> None:
    message = refusal({**SMALL, "embed": {"batch_items": 0, "timout_s": 3}, "index": {"target_recall": 2}})
    assert message.splitlines() == [
        "The config has 3 errors:",
        "embed.batch_items must be at least 1, got 0.",
        "embed.timout_s is not a known key. Did you mean 'timeout_s'?",
        "index.target_recall must be at most 1, got 2.",
    ]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLACES = [(key,) for key in RunConfig.model_fields]
PLACES += [(section, key) for section in SECTIONS for key in RunConfig.model_fields[section].annotation.model_fields]


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_any_value_gives_a_config_or_a_config_error(place: tuple[str, ...], value: Any) -> None:
    raw: dict[str, Any] = {**SMALL}
    if len(place) == 1:
        raw[place[0]] = value
    else:
        raw[place[0]] = {place[1]: value}
    try:
        config = parse_config(raw)
        assert isinstance(config, RunConfig)
    except ConfigError as error:
        refused = error
    else:
        return
    assert str(refused).endswith((".", "?"))


# ---------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("catalog: a\nsources: [", "line 2, column 11: this is not valid YAML"),
        (
            "catalog: a\ncatalog: b\n",
            r"line 2, column 1: `catalog` occurs twice \(lines 1 and 2\)\. Keep one of them\.$",
        ),
        (
            "embed: {model: x}\ncatalog: a\nembed:\n  readers: 3\nembed: {}\n",
            r"line 3, column 1: `embed` occurs 3 times \(lines 1, 3 and 5\)\. Merge them into one\.$",
        ),
        (
            "catalog: a\nembed:\n  model: x\n  readers: 3\n  model: y\n",
            r"line 5, column 3: `model` occurs twice \(lines 3 and 5\)",
        ),
        ("- a\n- b\n", "a job file must be a mapping of keys"),
        ("", "a job file must be a mapping of keys"),
        ("catalog: 2024-13-45\n", "this is not valid YAML: month must be in 1..12"),
        ("catalog: \x00\n", "this is not valid YAML"),
        ("catalog: !!python/object/apply:os.getcwd []\n", "this is not valid YAML"),
        ("catalog: &a [*a]\n", r"an alias \(`\*name`\) contains itself"),
        ("catalog: " + "[" * 5000, "the nesting is deeper than 100 levels"),
    ],
    ids=["open", "twice", "thrice", "twice-below", "list", "empty", "date", "nul", "python", "cycle", "deep"],
)
def test_invalid_yaml_is_a_config_error_with_its_file(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "job.yaml"))


def test_an_unreadable_file_is_a_config_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("catalog: é\n".encode("latin-1"))
    for name in ("absent.yaml", ".", "latin.yaml"):
        with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path / name))}: "):
            load_config(tmp_path / name)


def test_anchors_and_merge_keys_are_supported(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "catalog: c\nsources:\n- &one {kind: image, files: /a/*.jpg}\n- {<<: *one, files: /b/*.jpg}\n",
    )
    assert [(source.kind, source.files) for source in config.sources] == [("image", "/a/*.jpg"), ("image", "/b/*.jpg")]


# ---------------------------------------------------------------------------------------------------- secrets


@settings(max_examples=200, deadline=None)
@given(
    place=st.sampled_from([*PLACES, ("embed", "api_key"), ("embed", SECRET), (SECRET,), ("sources", "0")]),
    form=st.sampled_from(["{}", "Bearer {}", "https://user:{}@host/v1", "https://host/v1?key={}", "http://host/{}"]),
    wrap=st.sampled_from(["plain", "list", "mapping"]),
)
def test_a_misplaced_secret_never_appears_in_the_error(place: tuple[str, ...], form: str, wrap: str) -> None:
    value: Any = form.format(SECRET)
    value = {"plain": value, "list": [value], "mapping": {value: value}}[wrap]
    raw: dict[str, Any] = {**SMALL, place[0]: value if len(place) == 1 else {place[1]: value}}
    try:
        parse_config(raw)
    except ConfigError as error:
        refused = error
    else:
        return
    assert SECRET not in "".join(traceback.format_exception(refused))


@pytest.mark.parametrize("value", ["hunter-2", "a b", 4711, ["hunter-2"]], ids=str)
def test_an_invalid_api_key_env_is_not_shown(value: Any) -> None:
    """A short password is recognised by its key only."""
    message = refusal(with_embed(api_key_env=value))
    assert message.endswith((", got a value that is not shown.", "such as EPITHRE_KEY, not the key itself."))
    assert "hunter-2" not in message
    assert "4711" not in message


@pytest.mark.parametrize(
    ("word", "kind"),
    [("float", "double"), ("number", "double"), ("integer", "int"), ("str", "string"), ("boolean", "bool")],
)
def test_a_type_by_another_name_is_recognised(word: str, kind: str) -> None:
    texts = {"kind": "text", "table": "t.csv", "id": "id", "text": "text", "metadata": {"price": word}}
    message = refusal({"catalog": "catalog", "sources": [texts]})
    assert message.endswith(f", got {word!r}. Did you mean {kind!r}?")


def test_a_missing_job_file_is_called_a_job_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"jobs\.yaml: the job file cannot be read \(No such file or directory\)"):
        load_config(tmp_path / "jobs.yaml")


@pytest.mark.parametrize(
    "override",
    [
        f"embed.api_key={SECRET}",
        f"embed.api_key_env={SECRET}",
        f"embed.api_key_env=[{SECRET}",
        f"embed.api_key_env:{SECRET}",
        f"embed.base_url=https://x:{SECRET}@host/v1",
        f"embed.batch_items={SECRET}",
        SECRET,
    ],
)
def test_a_secret_in_set_never_appears_in_the_error(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL, (override,))
    assert SECRET not in str(caught.value)


def test_a_secret_from_a_variable_never_appears_in_the_error(tmp_path: Path) -> None:
    for key in ("api_key_env", "base_url", "batch_items", "api_key"):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, with_embed(**{key: "${EPITHRE_KEY}"}), environ={"EPITHRE_KEY": SECRET})
        assert SECRET not in str(caught.value)


def test_a_secret_in_invalid_yaml_never_appears_in_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"embed: {{api_key: {SECRET}, [}}")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "options",
    [
        {"key": SECRET},
        {"secret": SECRET},
        {"token": SECRET},
        {"account_key": SECRET},
        {"password": SECRET},
        {"client_kwargs": {"aws_secret_access_key": SECRET}},
        {"config_kwargs": [{"session_token": SECRET}]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_nested_credentials_in_storage_options_are_refused(options: dict[str, Any]) -> None:
    message = refusal(with_source(storage_options=options))
    assert "looks like a credential" in message
    assert SECRET not in message


def test_other_storage_options_are_kept() -> None:
    options = {"anon": True, "client_kwargs": {"endpoint_url": "http://localhost:9000"}}
    assert parse_config(with_source(storage_options=options)).sources[0].storage_options == options


@pytest.mark.parametrize(
    "url", ["redis://me:{}@h:6379/0", "redis://h:6379/0?password={}", "rediss://h/0?db=1&username={}"]
)
def test_a_redis_url_with_a_password_is_refused(url: str) -> None:
    message = refusal(with_embed(rate_limiter="redis", redis_url=url.format(SECRET)))
    assert "redis_password_env" in message
    assert SECRET not in message


def test_max_retry_after_is_a_finite_number() -> None:
    assert parse_config(with_embed()).embed.max_retry_after_s == 600
    assert parse_config(with_embed(max_retry_after_s=0)).embed.max_retry_after_s == 0
    for wrong in (-1, float("inf"), float("nan"), "soon"):
        assert "embed.max_retry_after_s" in refusal(with_embed(max_retry_after_s=wrong))


@pytest.mark.parametrize("key", ["catalog", "files", "table"])
def test_a_location_with_a_password_is_refused(key: str) -> None:
    url = f"ftp://me:{SECRET}@host/folder"
    raw = {**SMALL, "catalog": url} if key == "catalog" else with_source(**{key: url})
    message = refusal(raw)
    assert f"{key} must not contain a password" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/v1",
        "http://api.epithre.com/v1",
        "http://localhost.evil.example/v1",
        "HTTP://host/v1",
        "http://[::ffff:10.0.0.1]/v1",
        "http://0200.1/v1",
        "http://127.0.0.1.example/v1",
        "http://api.localhost/v1",
    ],
)
def test_plain_http_to_another_machine_needs_permission(url: str) -> None:
    assert "would send the key in clear text" in refusal(with_embed(base_url=url))
    assert parse_config(with_embed(base_url=url, allow_plain_http=True)).embed.base_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8080/v1",
        "http://127.0.0.1/v1",
        "http://127.8.9.1/v1",
        "http://[::1]:9/v1",
        "https://any/v1",
        "http://[::ffff:127.0.0.1]/v1",
        "http://127.1:8000/v1",
        "http://0x7f.0.0.1/v1",
        "http://localhost./v1",
    ],
)
def test_plain_http_to_this_machine_and_https_are_allowed(url: str) -> None:
    assert parse_config(with_embed(base_url=url + "/")).embed.base_url == url


def test_a_url_with_a_loopback_name_as_user_is_refused() -> None:
    assert "must not contain a user" in refusal(with_embed(base_url="http://127.0.0.1@evil.example/v1"))


# ---------------------------------------------------------------------------------------------------- variables


def test_a_variable_alone_is_yaml_and_within_a_string_text(tmp_path: Path) -> None:
    raw = {**with_embed(batch_items="${N}", model="m-${N}", allow_plain_http="${YES}"), "prepare": {"formats": "${F}"}}
    config = load(tmp_path, raw, environ={"N": "7", "YES": "true", "F": "[png, jpeg]"})
    assert (config.embed.batch_items, config.embed.model, config.embed.allow_plain_http) == (7, "m-7", True)
    assert config.prepare.formats == ("png", "jpeg")


def test_a_default_is_used_only_for_an_unset_variable(tmp_path: Path) -> None:
    raw = with_embed(model="${M:-plain}", batch_items="${N:-9}")
    assert load(tmp_path, raw, environ={}).embed.model == "plain"
    assert load(tmp_path, raw, environ={}).embed.batch_items == 9
    assert load(tmp_path, raw, environ={"M": "fine", "N": "2"}).embed.model == "fine"


@pytest.mark.parametrize("value", ["*.jpg", "[half", "%x", "2024-13-45", "@home", "a: b: c"])
def test_a_variable_that_is_not_yaml_is_a_string(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, with_embed(model="${M}"), environ={"M": value}).embed.model == value


def test_an_unset_variable_is_reported_with_place_and_name(tmp_path: Path) -> None:
    text = "catalog: c\nsources:\n  - kind: image\n    files: ${NOWHERE}/*.jpg\n"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, environ={})
    assert str(caught.value) == (
        f"{tmp_path}/job.yaml line 4, column 12: sources[0].files uses the environment variable NOWHERE, which is not "
        "set. Set it (`export NOWHERE=…`), or add a default: ${NOWHERE:-default}."
    )


def test_variables_come_from_the_process_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPITHRE_TEST_MODEL", "from-the-process")
    raw = with_embed(model="${EPITHRE_TEST_MODEL:-default}")
    assert load(tmp_path, raw).embed.model == "from-the-process"
    assert load(tmp_path, raw, environ={}).embed.model == "default"


# ---------------------------------------------------------------------------------------------------- --set


def leaves(config: RunConfig) -> list[tuple[str, str, Any]]:
    return [
        (section, key, value)
        for section in SECTIONS
        for key, value in getattr(config, section)
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


def test_set_gives_the_same_config_as_the_file(tmp_path: Path) -> None:
    """For every number in the schema."""
    shared = {**SMALL, "embed": {"rate_limiter": "host"}}  # so that any number of lanes will do
    for section, key, value in leaves(parse_config(shared)):
        changed = value + 1 if isinstance(value, int) else value / 2
        by_file = load(tmp_path, {**shared, section: {**shared.get(section, {}), key: changed}})
        assert load(tmp_path, shared, (f"{section}.{key}={changed}",)) == by_file
        assert getattr(getattr(by_file, section), key) == changed


def test_set_changes_list_entries_and_the_last_one_wins(tmp_path: Path) -> None:
    overrides = ("sources.0.files=/a/*.png", "catalog=/one", "catalog=/two", "prepare.formats=[png]", "runner=x=y")
    config = load(tmp_path, SMALL, overrides)
    assert (config.sources[0].files, config.catalog, config.runner) == ("/a/*.png", "/two", "x=y")
    assert config.prepare.formats == ("png",)


def test_set_may_use_a_variable(tmp_path: Path) -> None:
    assert load(tmp_path, SMALL, ("embed.batch_items=${N}",), {"N": "5"}).embed.batch_items == 5


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("embed", "--set takes KEY.PATH=VALUE, such as embed.batch_items=32, got 'embed'."),
        ("=3", "--set takes KEY.PATH=VALUE, such as embed.batch_items=32, got '=3'."),
        ("sources.7.files=x", "--set sources.7.files: the config has no 'sources.7'. Check the key."),
        ("sources.one.files=x", "--set sources.one.files: the config has no 'sources.one'. Check the key."),
        ("sources.1=x", "--set sources.1: the config has no such key. Check the key."),
        ("catalog.deep=1", "--set catalog.deep: the config has no such key. Check the key."),
        ("embed.model=[", "--set embed.model: the value is not valid YAML ('['). Quote it."),
        ("embed.model=2024-13-45", "--set embed.model: the value is not valid YAML ('2024-13-45'). Quote it."),
        ("embed.modle=x", "--set embed.modle: embed.modle is not a known key. Did you mean 'model'?"),
    ],
)
def test_an_invalid_set_is_refused(tmp_path: Path, override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL, (override,))
    assert str(caught.value) == sentence


# ---------------------------------------------------------------------------------------------------- places


def test_relative_paths_start_at_the_configs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "jobs" / "job.yaml"
    job.parent.mkdir()
    source = {"kind": "image", "table": "../t.csv", "id": "a", "uri": "b", "within": ["in", "/abs", "s3://b/in"]}
    job.write_text(yaml.safe_dump({"catalog": "./out/../catalog", "sources": [IMAGES, source]}))
    seen = []
    for folder, name in ((tmp_path, "jobs/job.yaml"), (job.parent, "job.yaml"), (Path("/"), str(job))):
        monkeypatch.chdir(folder)
        seen.append(load_config(name))
    assert seen[0] == seen[1] == seen[2]
    assert seen[0].catalog == str(tmp_path / "jobs" / "catalog")
    assert seen[0].sources[0].files == str(tmp_path / "jobs" / "pictures" / "*.jpg")
    assert seen[0].sources[1].table == str(tmp_path / "t.csv")
    assert seen[0].sources[1].within == (str(tmp_path / "jobs" / "in"), "/abs", "s3://b/in")


@pytest.mark.parametrize("url", ["s3://bucket/x", "memory://x", "/absolute/x", "simplecache::s3://b/x"])
def test_urls_and_absolute_paths_are_not_changed(tmp_path: Path, url: str) -> None:
    config = load(tmp_path, {"catalog": url, "sources": [{"kind": "image", "files": url}]})
    assert (config.catalog, config.sources[0].files) == (url, url)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(tmp_path, {**SMALL, "catalog": "~/c"}).catalog == str(tmp_path / "c")


# ---------------------------------------------------------------------------------------------------- the config


def test_a_config_is_frozen() -> None:
    config = parse_config(SMALL)
    for section in (config, config.embed, config.prepare, config.index, config.gates, config.sources[0]):
        for name in type(section).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(section, name, getattr(section, name))


def test_a_config_survives_a_round_trip_through_json() -> None:
    table = {**TEXTS, "metadata": {"price": "double", "lang": "string"}}
    config = parse_config({**SMALL, "sources": [IMAGES, table], "embed": {"requests_per_minute": 60}})
    assert parse_config(config.model_dump(mode="json")) == config
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_metadata_types_of_all_sources_are_sorted_by_name() -> None:
    one = {**TEXTS, "metadata": {"price": "double", "lang": "string"}}
    other = {**TEXTS, "metadata": {"lang": "string", "day": "date"}}
    for sources in ([one, other], [other, one]):
        types = parse_config({**SMALL, "sources": sources}).metadata_types
        assert list(types.items()) == [("day", "date"), ("lang", "string"), ("price", "double")]


def test_loading_a_config_does_not_change_the_process(tmp_path: Path) -> None:
    before = (dict(os.environ), Path.cwd(), sorted(tmp_path.iterdir()))
    load(tmp_path, SMALL, ("embed.batch_items=3",), {"A": "b"})
    assert (dict(os.environ), Path.cwd(), sorted(p for p in tmp_path.iterdir() if p.name != "job.yaml")) == before
