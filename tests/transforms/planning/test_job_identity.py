"""A catalog belongs to one job. An edited job is still the same job; other sources with other assets are not."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs import load_config
from epithre_beam.index.versions.manifest import Counts, JobIdentity, Manifest
from epithre_beam.transforms.planning.compare import Overlap
from epithre_beam.transforms.planning.job_identity import identity_of, identity_of_import, other_job

TEXTS = {"kind": "text", "table": "a.csv", "id": "id", "text": "text"}
IMAGES = {"kind": "image", "files": "pictures/**/*.jpg"}


def manifest(job: JobIdentity | None, rows: int = 100) -> Manifest:
    return Manifest(
        version="000001-20250102T030405Z-abcdef", previous=None, created_at="2026-11-22T00:00:00Z", software="",
        nonce="", model="m", model_fingerprint=None, dimension=4, faiss_version="1", metadata_types={}, files=(),
        indexes=(), config={}, timings_s={}, job=job,
        counts=Counts(assets=rows, per_kind={"text": rows}, embedded=0, reused=0, deduplicated=0, dead=0),
    )  # fmt: skip


def identity(folder: Path, *sources: dict[str, object], job: str | None = None, **sets: object) -> JobIdentity:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"catalog": "c", "sources": list(sources), **({} if job is None else {"job": job})}))
    return identity_of(load_config(path, [f"{name}={value}" for name, value in sets.items()]))


def never() -> Overlap:
    raise AssertionError("the sources decide, nothing has to be listed")


def test_edits_that_keep_the_sources_do_not_compare_assets(tmp_path: Path) -> None:
    before = manifest(identity(tmp_path, TEXTS))
    edited = [
        identity(tmp_path, {**TEXTS, "metadata": {"price": "double"}}),
        identity(tmp_path, TEXTS, IMAGES),
        identity(tmp_path, IMAGES, TEXTS),
        identity(tmp_path, {**TEXTS, "text": "description", "id": "sku"}),
        identity(tmp_path, {**TEXTS, "table": str(tmp_path / "a.csv")}),
        identity(tmp_path, {**TEXTS, "table": f"file://{tmp_path}/a.csv"}),
        identity(tmp_path / "below", {**TEXTS, "table": "../a.csv"}),
        identity(tmp_path, TEXTS, job="shop"),
    ]
    assert [other_job("c", before, job, never) for job in edited] == [None] * len(edited)


@pytest.mark.parametrize(("first", "second"), [("shop", "shop"), ("shop", None), (None, "shop"), (None, None)])
def test_equal_or_one_sided_name_is_accepted(tmp_path: Path, first: str | None, second: str | None) -> None:
    before = manifest(identity(tmp_path, TEXTS, job=first))
    assert other_job("c", before, identity(tmp_path, TEXTS, job=second), never) is None


def test_name_decides_for_any_sources(tmp_path: Path) -> None:
    before = manifest(identity(tmp_path, TEXTS, job="shop"))
    assert other_job("c", before, identity(tmp_path / "b", IMAGES, job="shop"), never) is None
    sentence = other_job("c", before, identity(tmp_path, TEXTS, job="other"), never)
    assert sentence == (
        f"c: the catalog belongs to the job shop (text {tmp_path}/a.csv), "
        f"and this is the job other (text {tmp_path}/a.csv)"
    )


def test_catalog_without_identity_or_rows_accepts_any_job(tmp_path: Path) -> None:
    job = identity(tmp_path, TEXTS)
    other = JobIdentity(sources=("image s3://b/x",))
    for before in (None, manifest(None), manifest(other, rows=0), manifest(JobIdentity())):
        assert other_job("c", before, job, never) is None


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 300), st.data())
def test_other_sources_must_share_a_tenth_of_the_smaller_set(listed: int, rows: int, data: st.DataObject) -> None:
    shared = data.draw(st.integers(0, min(listed, rows)))
    before, job = manifest(JobIdentity(sources=("text a",)), rows), JobIdentity(sources=("text b",))
    sentence = other_job("c", before, job, lambda: Overlap(listed=listed, rows=rows, shared=shared))
    is_same = shared > 0 and 10 * shared >= min(listed, rows)
    assert (sentence is None) == is_same
    if sentence is not None:
        wanted = ("the job text a,", "another job, text b,", f"lists {shared:,} of its {rows:,} assets")
        assert all(words in sentence for words in wanted)


def test_query_of_url_is_stored_as_hash() -> None:
    first, second = (identity_of_import(None, f"https://h/v.parquet?sig={word}") for word in ("secret1", "secret2"))
    assert "secret" not in f"{first}{second}"
    assert first != second
    assert first.sources[0].startswith("vectors https://h/v.parquet?")


def test_message_shows_only_first_sources(tmp_path: Path) -> None:
    sources = [{**TEXTS, "table": f"{number}.csv"} for number in range(7)]
    before = manifest(identity(tmp_path, *sources, job="a"))
    sentence = other_job("c", before, identity(tmp_path, *sources, job="b"), never)
    assert sentence is not None
    assert sentence.count("and 4 more") == 2
