"""An emulator does not replace vectors of the API without consent."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from epithre_beam.configs import load_config
from epithre_beam.configs.errors import ConfigError, EmulatorError
from epithre_beam.index import Store
from epithre_beam.index.versions.latest import latest_bytes, published_manifest
from epithre_beam.index.versions.layout import LATEST, manifest_name
from epithre_beam.pipelines.jobs.estimate import estimate
from epithre_beam.pipelines.jobs.run import run
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings

from ..conftest import KEY, Place, write_images


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(EmulatorSettings(dimension=64, api_keys=(KEY,))) as found:
        yield found


OWN = ("embed.base_url=emulator", "embed.emulator_model=hash")


def made_by_the_api(catalog: Path) -> None:
    """Give the current version the manifest that it has if the API made its vectors."""
    store = Store(str(catalog))
    manifest = published_manifest(store).model_copy(update={"model_fingerprint": None})
    store.write(manifest_name(manifest.version), manifest.to_bytes())
    store.write(LATEST, latest_bytes(manifest.version, hashlib.sha256(manifest.to_bytes()).hexdigest()))


def files(catalog: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in catalog.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.mark.slow  # several runs
def test_an_emulator_replaces_vectors_of_the_api_only_with_adopt(
    place: Place, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPITHRE_KEY", KEY)
    path = place.write_job(embed__base_url=emulator.base_url)
    run(load_config(path))
    made_by_the_api(place.catalog)
    run(load_config(path))  # nothing to send, so nothing is replaced
    write_images(place.folder / "pictures", 1, seed=9, start=900)
    before, sent = files(place.catalog), emulator.payments()
    for sets in (OWN, (), ("embed.retry_dead=true",)):
        with pytest.raises(EmulatorError, match=r"--set catalog=trial.*--adopt"):
            run(load_config(path, sets))
    assert emulator.payments() == sent
    assert files(place.catalog) == before
    planned = estimate(load_config(path, OWN))
    assert "would replace all of them with vectors of an emulator" in str(planned.emulator_refused)
    report = run(load_config(path, OWN), adopt=True)
    assert report["counts"]["reused"] == 0
    assert estimate(load_config(path, OWN)).emulator_refused is None


def test_the_refusal_exits_with_2_and_its_code(place: Place, emulator: Emulator) -> None:
    place.write_job(embed__base_url=emulator.base_url)
    assert place.cli("run", "job.yaml", "--quiet").returncode == 0
    made_by_the_api(place.catalog)
    sets = [part for option in OWN for part in ("--set", option)]
    for command in ("run", "retry-failed"):
        done = place.cli(command, "job.yaml", "--json", *sets)
        assert done.returncode == 2
        assert json.loads(done.stdout)["code"] == "emulator"
    assert "will fail without --adopt" in " ".join(place.cli("plan", "job.yaml", *sets).stdout.split())


def test_a_plan_names_the_unset_variable_of_the_key(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place.write_job(embed__base_url="http://127.0.0.1:9/v1", embed__api_key_env="NO_SUCH_KEY")
    assert estimate(load_config(path)).unset_key_variable == "NO_SUCH_KEY"
    assert "NO_SUCH_KEY is not set" in " ".join(place.cli("plan", "job.yaml").stdout.split())
    with pytest.raises(ConfigError, match=r"`--set embed\.base_url=emulator --set catalog=trial`"):
        run(load_config(path))
    assert estimate(load_config(path, OWN)).unset_key_variable is None
    monkeypatch.setenv("NO_SUCH_KEY", "k")
    assert estimate(load_config(path)).unset_key_variable is None


def test_a_plan_with_another_address_does_not_contradict_itself(place: Place, emulator: Emulator) -> None:
    place.write_job(embed__base_url=emulator.base_url)
    assert place.cli("run", "job.yaml", "--quiet").returncode == 0
    other = f"embed.base_url={emulator.base_url.replace('127.0.0.1', 'localhost')}"
    shown = " ".join(place.cli("plan", "job.yaml", "--set", other).stdout.split())
    assert "if it serves another model, all 90 assets are sent again" in shown
    assert "to send nothing if the model is the same" in shown
