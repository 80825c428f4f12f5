"""Beam accepts the options of the example jobs for engines."""

from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import (
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)

from epithre_beam.configs import load_config
from epithre_beam.configs.errors import ConfigError

JOBS = Path(__file__).resolve().parents[2] / "configs" / "jobs"
PLACES = {
    "CATALOG": "gs://some-bucket/catalog",
    "BUCKET": "gs://some-bucket",
    "PROJECT": "some-project",
    "REGION": "asia-southeast2",
    "IMAGE": "registry.example.com/epithre-beam:0.1.0",
}
OF_THE_JOB_SERVER = {"--execution_mode_for_batch"}
"""Options that Beam's Python side learns from Flink's job server when a job is submitted."""


def job_of(name, monkeypatch, *overrides):
    for variable, value in PLACES.items():
        monkeypatch.setenv(variable, value)
    return load_config(JOBS / f"{name}.yaml", overrides)


@pytest.mark.parametrize("name", ["flink", "spark", "dataflow"])
def test_beam_knows_every_option(name, monkeypatch):
    job = job_of(name, monkeypatch)
    options = PipelineOptions([f"--runner={job.runner}", *job.beam_options])
    written = {option.partition("=")[0] for option in job.beam_options}
    assert written - OF_THE_JOB_SERVER <= {f"--{name}" for name in options.get_all_options(drop_default=True)}
    assert options.view_as(StandardOptions).runner == job.runner


@pytest.mark.parametrize("name", ["flink", "spark"])
def test_workers_come_from_the_pool_next_to_them(name, monkeypatch):
    job = job_of(name, monkeypatch)
    found = PipelineOptions(list(job.beam_options)).view_as(PortableOptions)
    assert (found.environment_type, found.environment_config) == ("EXTERNAL", "localhost:50000")
    assert found.job_endpoint == "localhost:8099"


@pytest.mark.parametrize("option", ["parallelism=4", "-p", "--", "-- x"])
def test_an_unknown_option_is_reported(option, monkeypatch):
    with pytest.raises(ConfigError, match="beam_options"):
        job_of("flink", monkeypatch, f"beam_options=['{option}']")
