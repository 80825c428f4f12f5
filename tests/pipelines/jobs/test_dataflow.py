"""Dataflow without an account: its SDK checks the options and builds the job of a run without sending it."""

import json

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from epithre_beam.configs import load_config
from epithre_beam.pipelines.jobs.base import compare
from epithre_beam.pipelines.jobs.launch import software
from epithre_beam.transforms.embed_units import EmbedUnits
from epithre_beam.transforms.embedding.lane import LaneSetup
from epithre_beam.transforms.planning.plan import write_plan
from epithre_beam.transforms.versions.setup import VersionSetup, public_settings
from epithre_beam.transforms.workers.run_folder import RunFolder
from epithre_beam.transforms.write_version import Begin, WriteVersion

from ...configs.test_engine_jobs import PLACES, job_of
from ..conftest import KEY

pytest.importorskip("google.cloud.dataflow", reason="not installed: pip install google-cloud-dataflow-client")


def test_dataflows_sdk_accepts_the_job(place, monkeypatch):
    from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
    from apache_beam.runners.dataflow.internal import apiclient

    monkeypatch.setenv("EPITHRE_KEY", KEY)
    options = PipelineOptions([*job_of("dataflow", monkeypatch).beam_options, "--dry_run=True", "--no_auth"])
    job = load_config(place.folder / "job.yaml")
    folder = RunFolder(url=job.catalog, version="v")
    with compare(job.sources, job.metadata_types) as comparison:
        plan = write_plan(folder.store(), "v", comparison, embedding_config_hash="00", unit_references=512, base=None)
    lane = LaneSetup(
        run=folder,
        plan=plan.name,
        embed=job.embed,
        prepare=job.prepare,
        sources=job.sources,
        embedding_config_hash="00",
    )
    setup = VersionSetup(
        run=folder,
        embed=job.embed,
        index=job.index,
        gates=job.gates,
        metadata_types=job.metadata_types,
        settings=public_settings(job),
        plan=plan,
        rows_before=None,
        latest=None,
        software=software(),
        started_at_s=0.0,
    )
    runner = DataflowRunner()
    pipeline = beam.Pipeline(runner=runner, options=options)
    records = pipeline | "Units" >> beam.Create(plan.units) | "EmbedUnits" >> EmbedUnits(setup=lane)
    begin = pipeline | "Reused" >> beam.Create((Begin(),))
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
    reported = json.loads(type(template).to_json(template))
    (pool,) = reported["workerPools"]
    assert pool["machineType"] == "e2-standard-4"
    assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == [PLACES["IMAGE"]]
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 4
    assert reported["tempStoragePrefix"].endswith("some-bucket/dataflow/tmp")
