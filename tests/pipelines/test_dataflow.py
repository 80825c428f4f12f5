"""Dataflow without an account: its SDK checks the options and builds the job of a whole run, and sends nothing."""

import json

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from epithre_beam.configs import load_config
from epithre_beam.index.store import Store
from epithre_beam.pipelines.base import compare
from epithre_beam.pipelines.launch import software
from epithre_beam.transforms.embed import EmbedUnits
from epithre_beam.transforms.lane import LaneSetup
from epithre_beam.transforms.plan import write_plan
from epithre_beam.transforms.setup import VersionSetup, public_settings
from epithre_beam.transforms.version import Begin, WriteVersion

from ..configs.test_engine_jobs import PLACES, job_of
from .conftest import KEY

pytest.importorskip("google.cloud.dataflow", reason="google-cloud-dataflow-client is not installed")


def test_the_job_is_built_and_dataflow_has_no_objection(place, monkeypatch):
    from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
    from apache_beam.runners.dataflow.internal import apiclient

    monkeypatch.setenv("EPITHRE_KEY", KEY)
    options = PipelineOptions([*job_of("dataflow", monkeypatch).beam_options, "--dry_run=True", "--no_auth"])
    job = load_config(place.folder / "job.yaml")
    with compare(job) as comparison:
        plan = write_plan(Store(job.catalog), "v", job, comparison, None, None)
    lane = LaneSetup(config=job, version="v", plan=plan.name, base_url="http://x/v1", api_key_env="EPITHRE_KEY")
    setup = VersionSetup(
        config=job,
        metadata_types=job.metadata_types,
        settings=public_settings(job),
        version="v",
        plan=plan,
        previous=None,
        rows_before=None,
        latest=None,
        software=software(),
        started_at_s=0.0,
    )
    runner = DataflowRunner()
    pipeline = beam.Pipeline(runner=runner, options=options)
    records = pipeline | "Units" >> beam.Create(plan.units) | "EmbedUnits" >> EmbedUnits(setup=lane)
    begin = pipeline | "Carried" >> beam.Create((Begin(),))
    _ = (records, begin) | "Parts" >> beam.Flatten() | "WriteVersion" >> WriteVersion(setup=setup)
    result = pipeline.run()
    assert result.state == "DONE"
    assert result.job.proto.name

    graph = runner.proto_pipeline
    steps = {transform.unique_name for transform in graph.components.transforms.values()}
    assert {"EmbedUnits/EmbedLane", "WriteVersion/WriteShards", "WriteVersion/Publish"} <= steps
    assert KEY.encode() not in graph.SerializeToString()
    images = {environment.payload.decode("latin1") for environment in graph.components.environments.values()}
    assert any(PLACES["IMAGE"] in image for image in images)

    version = "0"  # of the worker pool's environment: Dataflow's own number
    template = apiclient.Environment(
        packages=[],
        proto_pipeline_staged_url="gs://some-bucket/pipeline.pb",
        options=options,
        environment_version=version,
        proto_pipeline=graph,
    ).proto
    told = json.loads(type(template).to_json(template))
    (pool,) = told["workerPools"]
    assert pool["machineType"] == "e2-standard-4"
    assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == [PLACES["IMAGE"]]
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 4
    assert told["tempStoragePrefix"].endswith("some-bucket/dataflow/tmp")
