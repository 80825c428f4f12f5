"""A query is embedded by the model of the catalog only."""

from pathlib import Path
from typing import Any

import pytest

from epithre_beam.configs import EmbedConfig
from epithre_beam.configs.errors import CatalogError
from epithre_beam.configs.schema import UNKNOWN_MODEL
from epithre_beam.index import Manifest, Store
from epithre_beam.transforms.embedding.endpoint import Endpoint
from epithre_beam.transforms.query.query_endpoint import check_made_by, open_query_endpoint

from ...index.manifests import make_manifest

MADE_BY: dict[str, Any] = {"model": "m", "fingerprint": None, "dimension": 8}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_manifest(Store(str(tmp_path)), "1-a", None).model_copy(update={"dimension": 8})


def endpoint(model: str, fingerprint: str | None, dimension: int) -> Endpoint:
    embed = EmbedConfig(base_url="https://api.example/v1", model=model, dimension=dimension)
    return Endpoint(embed=embed, fingerprint=fingerprint, requests=1)


def test_api_of_the_catalog_is_accepted_at_any_address(manifest: Manifest) -> None:
    check_made_by(manifest, "c", endpoint(**MADE_BY))
    emulated = manifest.model_copy(update={"model_fingerprint": "emulator-1"})
    check_made_by(emulated, "c", endpoint(**MADE_BY | {"fingerprint": "emulator-1"}))


@pytest.mark.parametrize("change", [{"model": "other"}, {"fingerprint": "emulator-2"}, {"dimension": 16}], ids=str)
def test_other_model_server_or_dimension_is_refused(manifest: Manifest, change: dict[str, Any]) -> None:
    with pytest.raises(CatalogError, match=r"^c: the model of .* differs from .* cannot be compared") as caught:
        check_made_by(manifest, "c", endpoint(**MADE_BY | change))
    (field,) = change
    assert f"{field} was {MADE_BY[field]!r} and is {change[field]!r}" in str(caught.value).replace(
        "model_fingerprint", "fingerprint"
    )


def test_emulator_and_api_are_never_confused(manifest: Manifest) -> None:
    emulated = manifest.model_copy(update={"model_fingerprint": "emulator-1"})
    with pytest.raises(CatalogError, match=r"model_fingerprint was 'emulator-1' and is None"):
        check_made_by(emulated, "c", endpoint(**MADE_BY))


def test_catalog_of_unknown_model_is_refused_before_any_request(manifest: Manifest) -> None:
    unknown = manifest.model_copy(update={"model": UNKNOWN_MODEL})
    with (
        pytest.raises(CatalogError, match=r"^c: the catalog has imported vectors of an unknown model"),
        open_query_endpoint(unknown, "c"),
    ):
        pass
