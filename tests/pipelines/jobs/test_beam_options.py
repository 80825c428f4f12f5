"""Unknown Beam options are errors, before anything is read or sent."""

import pytest

from epithre_beam.configs.errors import ConfigError
from epithre_beam.pipelines.jobs.beam_options import parsed_options


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--paralelism=4"], "--paralelism is not an option of Beam. Did you mean --parallelism?"),
        (["--zzzz"], "--zzzz is not an option of Beam or of FnApiRunner. Remove it."),
        (["--zzzz=1", "--direct_num_worker=2"], "--direct_num_worker is not an option of Beam. Did you mean"),
        (["--direct_num_workers=x"], "Beam does not accept these options: argument --direct_num_workers: invalid int"),
    ],
)
def test_unknown_options_and_invalid_values_are_errors(options, sentence):
    with pytest.raises(ConfigError) as caught:
        parsed_options(["--runner=FnApiRunner", *options])
    assert sentence in str(caught.value)


def test_all_unknown_options_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        parsed_options(["--runner=FnApiRunner", "--aaaa", "--bbbb=1", "--direct_num_workers=1"])
    assert [line[:6] for line in str(caught.value).splitlines()] == ["--aaaa", "--bbbb"]


@pytest.mark.parametrize(
    "options",
    [
        ["--runner=FnApiRunner", "--direct_num_workers=2", "--no_use_public_ips"],
        ["--runner=FlinkRunner", "--execution_mode_for_batch=BATCH_FORCED"],  # of Flink's job server
        ["--runner=DataflowRunner", "--sdk_container_image=i", "--max_num_workers=3"],
    ],
)
def test_options_of_beam_and_job_servers_are_accepted(options):
    parsed_options(options)


def test_a_command_rejects_unknown_options_before_it_starts(place):
    done = place.cli("run", "job.yaml", "--", "--direct_num_worker=2")
    assert done.returncode == 2
    assert "--direct_num_worker is not an option of Beam. Did you mean --direct_num_workers?" in done.stderr
    assert not place.catalog.exists()
