"""The manifest of the Flink cluster is valid for Kubernetes, and its parts match. No cluster is started."""

import apache_beam
import kubernetes_validate
import pytest
import yaml
from apache_beam.options.pipeline_options import FlinkRunnerOptions

from epithre_beam.configs import load_config

from ..engines.engine import FLINK
from .conftest import EXAMPLES

ITEMS = list(yaml.safe_load_all((EXAMPLES / "kubernetes" / "flink.yaml").read_text()))
OLDEST = "1.31"


def named(kind, part=""):
    (found,) = [item for item in ITEMS if item["kind"] == kind and item["metadata"]["name"].endswith(part)]
    return found


def pods():
    for item in ITEMS:
        if item["kind"] == "Deployment":
            yield item["spec"]["template"]["spec"]
        if item["kind"] == "CronJob":
            yield item["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def containers():
    return [c for pod in pods() for c in [*pod.get("initContainers", ()), *pod["containers"]]]


@pytest.mark.parametrize("release", [OLDEST, kubernetes_validate.latest_version()])
def test_manifest_matches_kubernetes_schema_without_unknown_keys(release):
    for item in ITEMS:
        kubernetes_validate.validate(item, release, strict=True)


def test_images_match_installed_beam_and_a_supported_flink():
    images = {container["name"]: container["image"] for container in containers()}
    flink = images["taskmanager"].split(":")[1]
    assert images["jobmanager"] == images["taskmanager"]
    assert flink in FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS
    assert images["job-server"] == f"apache/beam_flink{flink}_job_server:{apache_beam.__version__}"
    assert images["beam-workers"] == images["run"]


def test_job_uses_pool_and_slots_of_the_cluster(tmp_path):
    settings = named("ConfigMap")["data"]
    (tmp_path / "job.yaml").write_text(settings["job.yaml"])
    options = dict(option[2:].split("=") for option in load_config(tmp_path / "job.yaml").beam_options)
    (workers,) = [container for container in containers() if container["name"] == "beam-workers"]
    assert options["environment_config"] == f"localhost:{workers['ports'][0]['containerPort']}"
    flink = yaml.safe_load(settings["FLINK_PROPERTIES"])
    managers = named("Deployment", "taskmanager")["spec"]["replicas"]
    assert int(options["parallelism"]) == managers * flink["taskmanager.numberOfTaskSlots"]
    assert flink["jobmanager.rpc.address"] == named("Service")["metadata"]["name"]


def test_required_settings_are_in_manifest_docs_job_and_tests():
    manifest = yaml.safe_load(named("ConfigMap")["data"]["FLINK_PROPERTIES"])
    page = (EXAMPLES.parent / "docs" / "engines.md").read_text("utf-8")
    for name in FLINK:
        assert name in manifest
        assert f"{name}: " in page
    assert manifest["taskmanager.network.sort-shuffle.min-buffers"] == 64
    assert manifest["restart-strategy.type"] == FLINK["restart-strategy.type"] == "fixed-delay"
    option = "--execution_mode_for_batch=BATCH_FORCED"
    job = yaml.safe_load((EXAMPLES.parent / "configs" / "jobs" / "flink.yaml").read_text("utf-8"))
    for options in (job["beam_options"], yaml.safe_load(named("ConfigMap")["data"]["job.yaml"])["beam_options"]):
        assert option in options
    assert option in page


def test_each_task_manager_has_its_own_worker_pool():
    task_managers = named("Deployment", "taskmanager")["spec"]["template"]["spec"]["containers"]
    assert sorted(container["name"] for container in task_managers) == ["beam-workers", "taskmanager"]
    assert not [
        item for item in ITEMS if item["kind"] == "Service" and "50000" in str(item)
    ]  # a service would share the pools


def test_staging_folder_is_mounted_and_key_comes_from_a_secret():
    by_name = {container["name"]: container for container in containers()}
    (server,) = [a for a in by_name["job-server"]["args"] if a.startswith("--artifacts-dir=")]
    for name in ("job-server", "taskmanager"):
        assert server.partition("=")[2] in [mount["mountPath"] for mount in by_name[name]["volumeMounts"]]
    for name in ("beam-workers", "run"):
        (key,) = by_name[name]["env"]
        assert key["valueFrom"]["secretKeyRef"]["key"] == key["name"] == "EPITHRE_KEY"
    for pod in pods():
        mounted = {
            m["name"] for c in [*pod.get("initContainers", ()), *pod["containers"]] for m in c.get("volumeMounts", ())
        }
        assert mounted == {volume["name"] for volume in pod.get("volumes", ())}
