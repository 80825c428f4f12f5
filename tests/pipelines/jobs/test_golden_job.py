"""A catalog of an earlier release opens, searches, verifies, and is reused by a run without sending anything.

`golden/` was written by the release before the packages were split into sub-packages. It has a published version, a
version held by a gate, and the units of the held version.
"""

import json
import shutil
from pathlib import Path

import pytest

from epithre_beam.index import Store, open_catalog, read_latest
from epithre_beam.index.publish.verify import verify_versions

from ..conftest import Place

pytestmark = pytest.mark.core

GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture
def golden(tmp_path: Path) -> Place:
    shutil.copytree(GOLDEN, tmp_path / "golden")
    return Place(tmp_path / "golden")


def test_an_old_catalog_opens_and_gives_the_same_answers(golden: Place) -> None:
    answers = json.loads((GOLDEN / "answers.json").read_text())
    found = golden.cli("search", "catalog", "--text", "sentence number 3", "--kind", "text", "-k", "3", "--json")
    assert json.loads(found.stdout) == answers
    with open_catalog(golden.catalog) as catalog:
        assert catalog.manifest.counts.per_kind == {"image": 6, "text": 10}
        assert catalog.asset("text", 0).metadata.keys() == {"price"}


def test_every_old_version_verifies(golden: Place) -> None:
    found = list(verify_versions(Store(str(golden.catalog)), every=True))
    assert [(verdict.version is not None, verdict.damage) for verdict in found] == [(True, ())] * 2


def test_a_run_on_an_old_catalog_reuses_its_vectors(golden: Place) -> None:
    """The images have another path: they are read, and recognised by content."""
    before = read_latest(Store(str(golden.catalog)))
    assert before is not None
    report = json.loads(golden.cli("run", "job.yaml", "--json").stdout)
    assert report["status"] == "published"
    assert report["api"]["requests"] == 0
    assert report["previous"] == before.version
    counts = report["counts"]
    assert (counts["assets"], counts["dead"], counts["embedded"], counts["deleted"]) == (21, 1, 0, 0)
    assert (counts["unchanged"], counts["touched"], counts["new"]) == (10, 6, 4)
    assert list(verify_versions(Store(str(golden.catalog)), every=True))[-1].damage == ()
    again = json.loads(golden.cli("run", "job.yaml", "--json").stdout)
    assert again["status"] == "unchanged"
