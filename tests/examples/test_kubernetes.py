"""The manifest is valid for Kubernetes, its job config is valid, and its commands do what the comments say."""

import subprocess

import kubernetes_validate
import pytest
import yaml

from epithre_beam.configs import load_config

from .conftest import EXAMPLES, PROGRAM

MANIFEST = EXAMPLES / "kubernetes" / "cronjob.yaml"
OLDEST = "1.31"
"""The first release in which podFailurePolicy is generally available."""


@pytest.fixture
def objects():
    return {item["kind"]: item for item in yaml.safe_load_all(MANIFEST.read_text())}


def job_of(objects):
    return objects["CronJob"]["spec"]["jobTemplate"]["spec"]


@pytest.mark.parametrize("release", [OLDEST, kubernetes_validate.latest_version()])
def test_manifest_matches_kubernetes_schema_without_unknown_keys(objects, release):
    assert set(objects) == {"ConfigMap", "PersistentVolumeClaim", "CronJob"}
    for item in objects.values():
        kubernetes_validate.validate(item, release, strict=True)


def test_schema_check_finds_an_unknown_key(objects):
    job_of(objects)["backofLimit"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(objects["CronJob"], OLDEST, strict=True)


def test_permanent_failures_are_not_retried(objects):
    job = job_of(objects)
    pod = job["template"]["spec"]
    assert objects["CronJob"]["spec"]["concurrencyPolicy"] == "Forbid"
    assert pod["restartPolicy"] == "Never"  # otherwise Kubernetes ignores podFailurePolicy
    (rule,) = [rule for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert rule["onExitCodes"]["values"] == [2, 3]
    names = [container["name"] for container in [*pod["initContainers"], *pod["containers"]]]
    assert rule["onExitCodes"]["containerName"] in names
    # The delays between attempts are 10, 20, 40 … s, together longer than the lease of a lost node.
    assert sum(10 * 2**i for i in range(job["backoffLimit"])) > 300


def test_key_comes_from_a_secret_only(objects):
    pod = job_of(objects)["template"]["spec"]
    for container in [*pod["initContainers"], *pod["containers"]]:
        (key,) = [variable for variable in container["env"] if variable["name"] == "EPITHRE_KEY"]
        assert "value" not in key
        assert key["valueFrom"]["secretKeyRef"]["key"] == "EPITHRE_KEY"


def test_every_mount_has_a_volume(objects):
    pod = job_of(objects)["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["job"]["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == objects["PersistentVolumeClaim"]["metadata"]["name"]


def test_job_in_config_map_is_valid(objects, tmp_path):
    (tmp_path / "job.yaml").write_text(objects["ConfigMap"]["data"]["job.yaml"])
    assert load_config(tmp_path / "job.yaml").catalog == "/data/catalog"


def test_commands_of_manifest_run_and_prune(objects, place, environment):
    pod = job_of(objects)["template"]["spec"]
    for container in [*pod["initContainers"], *pod["containers"]]:
        program, *arguments = container["command"]
        assert program == PROGRAM.name
        places = {"/job/job.yaml": str(place.folder / "job.yaml"), "/data/catalog": str(place.catalog)}
        command = [PROGRAM, *(places.get(argument, argument) for argument in arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (place.catalog / "LATEST.json").exists()
