"""Unknown Beam options are errors, before anything is read or sent."""

import socket
import subprocess
import sys

import pytest

from epithre_beam.configs.errors import ConfigError, RunnerError
from epithre_beam.pipelines.jobs.beam_options import check_job_server, parsed_options

from ...ports import free_port


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


@pytest.mark.parametrize(
    ("runner", "sentence"),
    [
        ("PrismRuner", "runner: 'PrismRuner' is not a runner of Beam. Did you mean PrismRunner?"),
        ("FooRunner", "runner: 'FooRunner' is not a runner of Beam. Use one of FnApiRunner, "),
        ("my.module.Runner", "runner: 'my.module.Runner' cannot be imported (No module named 'my')."),
        ("json.NoRunner", "runner: 'json.NoRunner' cannot be imported (module 'json' has no attribute 'NoRunner')."),
    ],
)
def test_an_unknown_runner_is_an_error(runner, sentence):
    with pytest.raises(ConfigError) as caught:
        parsed_options([f"--runner={runner}"])
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    "runner", ["flink", "bundlebaseddirectrunner", "apache_beam.runners.portability.prism_runner.PrismRunner"]
)
def test_a_runner_may_be_named_as_beam_allows(runner):
    parsed_options([f"--runner={runner}"])


def test_a_job_server_must_answer():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_job_server(parsed_options(["--runner=PortableRunner", f"--job_endpoint=localhost:{port}"]))
    check_job_server(parsed_options(["--runner=PortableRunner", "--job_endpoint=embed"]))
    for endpoint in ("localhost", "localhost:http", ":8099", "localhost:99999"):
        with pytest.raises(ConfigError, match="--job_endpoint must be HOST:PORT"):
            check_job_server(parsed_options(["--runner=PortableRunner", f"--job_endpoint={endpoint}"]))


def test_a_missing_job_server_ends_a_run_before_it_starts(place):
    endpoint = f"localhost:{free_port()}"
    done = place.cli("run", "job.yaml", "--", "--runner=PortableRunner", f"--job_endpoint={endpoint}")
    assert done.returncode == 1
    assert f"runner: no job server answers at {endpoint} (Connection refused). Start it, or correct" in done.stderr
    assert not place.catalog.exists()
    with pytest.raises(RunnerError):
        check_job_server(parsed_options(["--runner=PortableRunner", f"--job_endpoint={endpoint}"]))


def test_an_unchanged_catalog_does_not_hide_an_unknown_runner(place):
    assert place.cli("run", "job.yaml", "--quiet").returncode == 0
    for arguments in (("run", "job.yaml"), ("index", "catalog")):
        done = place.cli(*arguments, "--", "--runner=my.module.Runner")
        assert done.returncode == 2, done.stderr
        assert "runner: 'my.module.Runner' cannot be imported" in done.stderr


def test_a_job_server_that_cannot_be_downloaded_gives_advice(place):
    """Beam downloads its job server itself; here from an address where nothing listens."""
    jar = f"http://127.0.0.1:{free_port()}/server.jar"
    done = place.cli("run", "job.yaml", "--", "--runner=FlinkRunner", f"--flink_job_server_jar={jar}")
    assert done.returncode == 1
    assert (
        f"The runner FlinkRunner failed: Beam could not download its job server from {jar} (<urlopen error"
        in done.stderr
    )
    assert "use --runner=PortableRunner --job_endpoint=HOST:PORT; see docs/engines.md." in done.stderr


def test_options_that_a_runner_declares_are_known() -> None:
    """Beam knows them once the module of the runner is imported, in a process that has not imported it yet."""
    code = (
        "from epithre_beam.pipelines.jobs.beam_options import parsed_options as parse; "
        "print(parse(['--runner=apache_beam.runners.dask.dask_runner.DaskRunner', '--dask_npartitions=3'])"
        ".get_all_options()['npartitions'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "3", done.stderr
