"""The manifests are valid for Kubernetes, and their configs and commands do what the comments say."""

import json
import re
import subprocess

import httpx
import kubernetes_validate
import pytest
import yaml

from epithre_beam.configs import load_config

from .conftest import EXAMPLES, PROGRAM

MANIFEST = EXAMPLES / "kubernetes" / "cronjob.yaml"
SERVE = EXAMPLES / "kubernetes" / "serve.yaml"
OLDEST = "1.31"
"""The first release in which podFailurePolicy is generally available."""


@pytest.fixture
def objects():
    return objects_of(MANIFEST)


@pytest.fixture
def deployed():
    return objects_of(SERVE)


def objects_of(manifest):
    return {item["kind"]: item for item in yaml.safe_load_all(manifest.read_text())}


def job_of(objects):
    return objects["CronJob"]["spec"]["jobTemplate"]["spec"]


@pytest.mark.parametrize(
    ("manifest", "kinds"),
    [(MANIFEST, {"ConfigMap", "PersistentVolumeClaim", "CronJob"}), (SERVE, {"Deployment", "Service"})],
    ids=["cronjob", "serve"],
)
@pytest.mark.parametrize("release", [OLDEST, kubernetes_validate.latest_version()])
def test_manifest_matches_kubernetes_schema_without_unknown_keys(manifest, kinds, release):
    objects = objects_of(manifest)
    assert set(objects) == kinds
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


def test_service_reaches_the_pods_of_the_deployment(deployed):
    spec = deployed["Deployment"]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert deployed["Service"]["spec"]["selector"] == spec["selector"]["matchLabels"]
    (container,) = spec["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert deployed["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert f"--port={port['containerPort']}" in container["command"]
    probes = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
    assert {probe["port"] for probe in probes} == {port["name"]}


def test_server_is_confined_and_writes_to_its_volumes_only(deployed):
    pod = deployed["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    confined = container["securityContext"]
    assert (confined["readOnlyRootFilesystem"], confined["allowPrivilegeEscalation"]) == (True, False)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"]}
    assert set(mounts) == set(volumes)
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["EPITHRE_BEAM_CACHE"].startswith(f"{mounts['cache']}/")
    assert int(variables["EPITHRE_BEAM_CACHE_MB"]) < int(volumes["cache"].removesuffix("Gi")) * 1024
    assert variables["EPITHRE_KEY"] is None
    assert variables["SERVE_TOKEN"] is None


def test_server_of_the_manifest_answers_its_probes_and_searches(deployed, place, environment, tmp_path):
    (container,) = deployed["Deployment"]["spec"]["template"]["spec"]["containers"]
    run = [PROGRAM, "run", place.folder / "job.yaml", "--quiet"]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    program, *arguments = container["command"]
    assert program == PROGRAM.name
    places = {"s3://bucket/catalog": str(place.catalog), "--port=8000": "--port=0"}
    command = [PROGRAM, *(places.get(argument, argument) for argument in arguments), "--json"]
    environment |= {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    environment |= {"EPITHRE_BEAM_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path), "SERVE_TOKEN": "t" * 32}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            line = server.stdout.readline()
            assert line, server.stderr.read()
            port = re.search(r":(\d+)/$", json.loads(line)["url"])[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                for probe in ("startup", "liveness", "readiness"):
                    path = container[f"{probe}Probe"]["httpGet"]["path"]
                    assert client.get(path, headers={"host": "10.1.2.3:8000"}).status_code == 200
                asked = {"asset": {"kind": "text", "id": "t003"}, "k": 3}
                assert client.post("/api/search", json=asked).status_code == 401
                answer = client.post("/api/search", json=asked, headers={"authorization": f"Bearer {'t' * 32}"})
                assert len(answer.json()["hits"]) == 3
        finally:
            server.terminate()
