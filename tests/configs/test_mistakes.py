"""All errors of a config are reported at once, one line each, with file, line and column, sorted by line."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel

from epithre_beam.configs import RunConfig, load_config
from epithre_beam.configs.errors import ConfigError
from epithre_beam.configs.load import load_search_job
from epithre_beam.configs.search_schema import SearchJob

RUN = "catalog: c\nsources:\n  - {kind: image, files: p/*.jpg}\n"
SEARCH = "catalog: c\noutput: o\nassets:\n  - kind: image\n"


def refusal(folder: Path, text: str, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> str:
    """The lines of the error; the file is called JOB in them."""
    path = folder / "job.yaml"
    path.write_text(text, "utf-8")
    load = load_search_job if "output:" in text else load_config
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, environ or {})
    return str(caught.value).replace(str(path), "JOB")


def sections(schema: type[BaseModel], place: str = "") -> Iterable[tuple[str, str]]:
    """(key, section) of each key of a schema; the section of a list's entries is that list."""
    for name, info in schema.model_fields.items():
        yield name, place
        for candidate in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from sections(candidate, name)


KEYS = [(RUN, *found) for found in sections(RunConfig)] + [(SEARCH, *found) for found in sections(SearchJob)]


@pytest.mark.parametrize(("job", "key", "section"), [k for k in KEYS if k[2]])
def test_a_key_one_level_too_high_names_its_section(tmp_path: Path, job: str, key: str, section: str) -> None:
    if re.search(rf"^{key}:", job, re.MULTILINE) or key in (RunConfig if job is RUN else SearchJob).model_fields:
        pytest.skip("the top level has a key of this name too")
    line = job.count("\n") + 1
    message = refusal(tmp_path, f"{job}{key}: 1\n")
    assert message.startswith(f"JOB line {line}, column 1: `{key}` belongs under ")
    assert re.search(rf"under (an entry of )?`{section}`.*, not at the top level\.$", message)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            f"{RUN}embed:\n  base_url: emulator\nrequests_per_minute: 60\n",
            "JOB line 6, column 1: `requests_per_minute` belongs under `embed`, not at the top level.",
        ),
        (
            f"{RUN}index: {{requests_per_minute: 60}}\n",
            "JOB line 4, column 9: `requests_per_minute` belongs under `embed`, not under `index`.",
        ),
        (
            "sources:\n  - kind: image\n    files: a\n    catalog: c\n",
            "JOB line 4, column 5: `catalog` belongs at the top level, not under `sources[0]`.",
        ),
        (
            f"{RUN}request_per_minute: 60\n",
            (
                "JOB line 4, column 1: request_per_minute is not a known key. "
                "Did you mean 'requests_per_minute', under `embed`?"
            ),
        ),
        (
            f"{SEARCH}requests_per_minute: 60\n",
            "JOB line 5, column 1: `requests_per_minute` belongs under `embed`, not at the top level.",
        ),
        (
            f"{SEARCH}embed:\n  min_score: 0.5\n",
            "JOB line 6, column 3: `min_score` belongs under `search`, not under `embed`.",
        ),
        (
            f"{RUN}min_score: 0.5\n",
            (
                "JOB line 4, column 1: `min_score` belongs in a job for `search-batch` (under `search`), "
                "and this is a job for `run`."
            ),
        ),
        (
            f"{RUN}    metdata: {{}}\n".replace("{kind: image, files: p/*.jpg}", "kind: image\n    files: p"),
            "JOB line 5, column 5: sources[0].metdata is not a known key. Did you mean 'metadata'?",
        ),
        (
            f"{SEARCH}embed:\n  batch_itms: 4\n",
            "JOB line 6, column 3: embed.batch_itms is not a known key. Did you mean 'batch_items'?",
        ),
        (f"{SEARCH}embed:\n  batch_items: 0\n", "JOB line 6, column 16: embed.batch_items must be at least 1, got 0."),
    ],
)
def test_a_misplaced_or_misspelt_key_is_reported_with_line_and_remedy(tmp_path: Path, text: str, line: str) -> None:
    assert refusal(tmp_path, text) == line


def test_all_errors_of_a_job_are_sorted_by_line(tmp_path: Path) -> None:
    text = (
        "catalog: ''\n"
        "embed:\n"
        "  batch_items: 0\n"
        "  model: ${NO_MODEL}\n"
        "  profile: voyag\n"
        "timeout_s: 3\n"
        "sources:\n"
        "  - kind: imgae\n"
        "    files: ${NO_FOLDER}/*.jpg\n"
    )
    said = refusal(tmp_path, text, ("index.target_recall=2", "prepare.jpeg_qualty=3")).splitlines()
    assert said == [
        "JOB has 9 errors:",
        "JOB line 1, column 10: catalog must have at least 1 character, got ''.",
        "JOB line 3, column 16: embed.batch_items must be at least 1, got 0.",
        (
            "JOB line 4, column 10: embed.model uses the environment variable NO_MODEL, which is not set. "
            "Set it (`export NO_MODEL=…`), or add a default: ${NO_MODEL:-default}."
        ),
        "JOB line 5, column 12: embed.profile 'voyag' is not a known profile. Did you mean 'voyage'?",
        "JOB line 6, column 1: `timeout_s` belongs under `embed`, not at the top level.",
        "JOB line 8, column 11: sources[0].kind must be 'image' or 'text', got 'imgae'. Did you mean 'image'?",
        (
            "JOB line 9, column 12: sources[0].files uses the environment variable NO_FOLDER, which is not set. "
            "Set it (`export NO_FOLDER=…`), or add a default: ${NO_FOLDER:-default}."
        ),
        "--set index.target_recall: index.target_recall must be at most 1, got 2.",
        "--set prepare.jpeg_qualty: prepare.jpeg_qualty is not a known key. Did you mean 'jpeg_quality'?",
    ]


def test_a_wrong_value_from_a_variable_has_the_variables_place(tmp_path: Path) -> None:
    message = refusal(tmp_path, f"{RUN}embed:\n  batch_items:   ${{N}}\n", environ={"N": "many"})
    assert message.startswith("JOB line 5, column 18: embed.batch_items must be a whole number")


def test_an_unset_variable_hides_the_errors_it_causes(tmp_path: Path) -> None:
    """Without its address `redis_url` is invalid, and so is `rate_limiter`."""
    message = refusal(tmp_path, f"{RUN}embed:\n  rate_limiter: redis\n  redis_url: ${{REDIS}}\n")
    assert message.startswith("JOB line 6, column 14: embed.redis_url uses the environment variable REDIS")
    assert "\n" not in message


def test_a_rule_of_a_section_has_the_place_of_its_key(tmp_path: Path) -> None:
    message = refusal(tmp_path, f"{RUN}embed:\n  lanes: 4\n")
    assert message.startswith("JOB line 4, column 1: embed: lanes is 4, but")
    assert refusal(tmp_path, f"{RUN}  - kind: text\n").startswith("JOB line 4, column 5: sources[1]: the source")


@pytest.mark.parametrize(
    ("section", "overrides", "begin"),
    [
        ("readers: 2", ["embed.lanes=4", "embed.readers=3"], "--set embed.lanes: embed: lanes is 4, but"),
        ("readers: 2", ["embed.max_cost=5"], "--max-cost: embed: max_cost is 5, but no price"),
        ("readers: 2", ["embed.max_requests=1"], "--max-requests: embed: max_requests is 1, which the probe"),
        ("lanes: 4", ["embed.readers=3"], "JOB line 4, column 1: embed: lanes is 4, but"),  # not named by the rule
    ],
)
def test_a_rule_of_a_section_names_the_option_that_set_its_key(
    tmp_path: Path, section: str, overrides: list[str], begin: str
) -> None:
    assert refusal(tmp_path, f"{RUN}embed:\n  {section}\n", overrides).startswith(begin)


def test_a_missing_key_has_the_place_of_its_section(tmp_path: Path) -> None:
    assert refusal(tmp_path, f"{RUN}  - files: x\n") == "JOB line 4, column 5: sources[1].kind is missing. Add it."
    assert refusal(tmp_path, "catalog: c\n") == "JOB line 1, column 1: sources is missing. Add it."


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "catalog: c\nembed:\n   readers: 3\n  lanes: 2\n",
            (
                "JOB line 4, column 3: this is not valid YAML: the indentation matches no line above. "
                "Start the keys of a section in the same column."
            ),
        ),
        (
            "catalog: c\nembed:\n\treaders: 3\n",
            "JOB line 3, column 1: this is not valid YAML: the line is indented with a tab. Indent with spaces.",
        ),
        (
            "catalog: c: d\n",
            (
                "JOB line 1, column 11: this is not valid YAML: a `:` is not allowed here. "
                "Quote the value, or check the indentation."
            ),
        ),
        ("catalog: c\nembed\n", "JOB line 3, column 1: this is not valid YAML: a key is not followed by `:`. Add it."),
    ],
)
def test_common_yaml_mistakes_have_plain_messages(tmp_path: Path, text: str, line: str) -> None:
    assert refusal(tmp_path, text) == line


def test_many_errors_are_counted_and_the_first_listed(tmp_path: Path) -> None:
    said = refusal(tmp_path, RUN + "".join(f"zz{i}: 1\n" for i in range(80))).splitlines()
    assert said[0] == "JOB has 80 errors:"
    assert said[1].startswith("JOB line 4, column 1: zz0 is not a known key.")
    assert (len(said), said[-1]) == (52, "and 30 more.")
