"""Any edit of a catalog's JSON files gives correct answers or an error, and no file outside is touched."""

import datetime
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from epithre_beam.configs.errors import ArgumentError, CatalogError, StoreError
from epithre_beam.index import Catalog, Store, open_catalog
from epithre_beam.index.export.export import FORMS, export_catalog
from epithre_beam.index.publish.prune import PruneRules, prune
from epithre_beam.index.publish.verify import verify_versions
from epithre_beam.index.versions.history import list_versions
from epithre_beam.index.versions.holder import check_holder, make_holder, read_holder, utc_now
from epithre_beam.index.versions.latest import latest_bytes, read_latest
from epithre_beam.index.versions.readers import read_holds

from ..index.forging import GOLDEN, Forged
from .budget import fuzz, fuzzing
from .edits import EDITS, edited

pytestmark = fuzzing

QUERIES = np.load(GOLDEN / "queries.npy")
ANSWERS = {(a["kind"], a["k"]): a["hits"] for a in orjson.loads((GOLDEN / "answers.json").read_bytes())}
_EVENTS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.listdir", "os.scandir"}
_NAMES = {"image", "text", "schema", "load", "indexes", "indices"}
_allowed: list[str] = []
_outside: list[str] = []


def _watch(event: str, args: tuple[Any, ...]) -> None:
    """Record files outside the catalog that are opened, created, moved or deleted, except those of libraries."""
    if not _allowed or event not in _EVENTS:
        return
    if args and isinstance(args[0], (str, bytes, os.PathLike)):
        path = os.path.realpath(os.fsdecode(args[0]))
        if not path.startswith(tuple(_allowed)):
            _outside.append(f"{event} {path}")


sys.addaudithook(_watch)


@pytest.fixture
def forged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forged]:
    forged = Forged(tmp_path / "catalog")
    (tmp_path / "x").write_bytes(b"mine")
    monkeypatch.setenv("EPITHRE_BEAM_CACHE", str(tmp_path / "cache"))
    libraries = {
        sys.prefix,
        sys.base_prefix,
        str(Path(__file__).resolve().parents[2]),
        "/proc",
        "/sys",
        "/usr",
        "/etc/ld",
    }
    own = [str(tmp_path.resolve() / name) for name in ("catalog", "cache", "out")]
    _outside.clear()
    _allowed[:] = [*own, *map(os.path.realpath, libraries)]
    yield forged
    _allowed.clear()
    assert not _outside, _outside[:5]
    assert (tmp_path / "x").read_bytes() == b"mine"


def check_answers(catalog: Catalog) -> None:
    """Check the known answers of an exact index, and the order and scores of hits of an index with codes."""
    for kind in catalog.kinds:
        vectors = catalog.vectors(kind, np.arange(len(catalog.assets(kind))))  # type: ignore[arg-type]
        scores = QUERIES @ vectors.T
        found = catalog.search(QUERIES, 10, kinds=kind)  # type: ignore[arg-type]
        for q, hits in enumerate(found):
            assert len({hit.row for hit in hits}) == len(hits) == 10
            np.testing.assert_allclose([hit.score for hit in hits], scores[q, [hit.row for hit in hits]], atol=1e-5)
            assert all(one.score >= other.score for one, other in itertools.pairwise(hits))
        if kind == "text":
            expected = ANSWERS[kind, 10]
            assert [[hit.asset_id for hit in hits] for hits in found] == [
                [name for name, _ in hits] for hits in expected
            ]
        assert catalog.find_asset(kind, "nobody") is None  # type: ignore[arg-type]
        assert catalog.asset(kind, 0).kind == kind  # type: ignore[arg-type]
    repr(catalog)


def test_edited_manifest_is_searched_correctly_or_refused(forged: Forged, tmp_path: Path) -> None:
    store = Store(str(forged.folder))
    original = forged.manifest()

    def target(edits: list[Any]) -> None:
        manifest = edited(original, edits)
        forged.write(json.dumps(manifest).encode())
        try:
            with open_catalog(forged.folder, verify=False) as catalog:
                check_answers(catalog)
                catalog.search(QUERIES, 5, merge="standardised", query_kind="image") if catalog.kinds else None
        except (CatalogError, ArgumentError):  # ArgumentError if merge figures are missing
            pass
        for info in list_versions(store, read_latest(store)):
            assert info.manifest is not None or info.damage
        list(verify_versions(store))

    fuzz(target, EDITS)


def test_export_of_edited_manifest_stays_in_its_folder(forged: Forged, tmp_path: Path) -> None:
    original = forged.manifest()

    def target(edits: list[Any]) -> None:
        forged.write(json.dumps(edited(original, edits)).encode())
        for form in FORMS:
            try:
                facts = export_catalog(Store(str(forged.folder)), Store(str(tmp_path / "out")), form, overwrite=True)
            except (CatalogError, ArgumentError, StoreError):
                continue
            names = {file["name"] for file in facts["files"]}
            there = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
            assert there - {".export.json.lock"} == {*names, "export.json"}
            assert {re.split(r"[/_.]", name)[0] for name in names} <= _NAMES, names

    fuzz(target, EDITS)


def test_edited_latest_lease_and_hold_never_make_prune_delete_files(forged: Forged) -> None:
    store = Store(str(forged.folder))
    latest = orjson.loads((forged.folder / "LATEST.json").read_bytes())
    checked = orjson.loads(latest_bytes(latest["version"], latest["manifest_sha256"], ["000000-a"]))
    until = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)).isoformat()
    hold = {"version": latest["version"], "expires_at": until, "reader": "process 1 on here"}
    holder = json.loads(make_holder("run", "n", 30).to_bytes())
    (forged.folder / "readers").mkdir()
    files = sorted(path for path in forged.folder.rglob("*") if path.is_file())

    def target(edits: list[Any]) -> None:
        for good in (latest, checked):
            forged.write_latest(edited(good, edits))
            try:
                with open_catalog(forged.folder, verify=False) as catalog:
                    check_answers(catalog)
            except CatalogError:
                pass
        (forged.folder / "readers" / "a.json").write_bytes(json.dumps(edited(hold, edits)).encode())
        for version in read_holds(store).readers:
            assert "/" not in version
        there = read_holder(json.dumps(edited(holder, edits)).encode())
        if there is not None:
            check_holder(there.state(()), there.renewed_at, there.ttl_s, utc_now())
            str(there)
        forged.write_latest(latest)
        prune(store, PruneRules(keep=1))
        assert all(path.exists() for path in files)

    fuzz(target, EDITS)
