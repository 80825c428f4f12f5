"""Runs the DAG of the examples on a real Airflow, in a separate environment: Airflow and Beam need other versions.

On two cores it takes a minute to install 440 MB, and ten seconds to run the DAG and each of its failures.
`examples/airflow/constraints.txt` has the versions.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
DAGS = ROOT / "examples" / "airflow"
PROGRAM = Path(sys.executable).with_name("epithre-beam")
PACKAGES = ("apache-airflow-core", "apache-airflow-providers-standard")

# Runs in Airflow's environment: the whole DAG once, then the exception for each exit code of a real run.
_CHECK = """
import json, os, sys
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
assert not bag.import_errors, bag.import_errors
(dag,) = bag.dags.values()
if sys.argv[1] == "test":
    run = dag.test()
    states = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
    assert states == {"run": "success", "prune": "success"}, states
    found = next(ti for ti in run.get_task_instances() if ti.task_id == "run").xcom_pull(task_ids="run")
    assert found["status"] == "published" and found["counts"]["dead"] == 0, found
    assert len(json.dumps(found)) < 20_000
else:
    wanted = {"fail": AirflowFailException, "skip": AirflowSkipException, "retry": AirflowException}[sys.argv[1]]
    try:
        dag.task_dict["run"].python_callable()
    except AirflowException as error:
        assert type(error) is wanted, repr(error)
        assert sys.argv[2] in str(error), error
    else:
        raise AssertionError("the task succeeded")
"""


def call(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(c) for c in command], env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        sys.exit(f"{command[0]} failed with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "airflow", with_pip=True)
        python = folder / "airflow" / "bin" / "python"
        pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        call(*pip, "--constraint", DAGS / "constraints.txt", *PACKAGES)
        call(PROGRAM, "demo", folder / "demo", "--images", "40")
        job, catalog = folder / "demo" / "job.yaml", folder / "demo" / "catalog"
        environment = {
            "AIRFLOW_HOME": str(folder / "home"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "PYTHONPATH": str(DAGS),
            "PYTHONDONTWRITEBYTECODE": "1",
            "EPITHRE_BEAM": str(PROGRAM),
            "EPITHRE_CATALOG": str(catalog),
        }
        airflow = (python, "-m", "airflow")
        call(*airflow, "db", "migrate", **environment)
        call(*airflow, "dags", "reserialize", **environment)

        def check(how: str, job: Path, *words: str) -> None:
            call(python, "-c", _CHECK, how, *words, **{**environment, "EPITHRE_JOB": str(job)})

        job.write_text(
            text := job.read_text() + "  batch_items: 7\n  dimension: 1000\n"
        )  # differs from the demo, so that the run publishes
        check("test", job)
        (bad := job.with_name("bad.yaml")).write_text(text + "  no_such_setting: 1\n")
        check("fail", bad, "no_such_setting")
        (limited := job.with_name("limited.yaml")).write_text(text.replace("1000", "512") + "  max_requests: 0\n")
        check("fail", limited, "embed.max_requests")
        (held := job.with_name("held.yaml")).write_text(text + "gates: {max_dead_share: 0}\n")
        next((folder / "demo" / "images").iterdir()).write_text("not an image")
        check("fail", held, "gates.max_dead_share")
        (away := job.with_name("away.yaml")).write_text(
            text.replace("base_url: emulator", "base_url: http://127.0.0.1:9/v1")
        )
        environment["EPITHRE_KEY"] = "never-sent"
        check("retry", away, "embed.base_url")
        hold = "import sys, time\nfrom epithre_beam.index import Store\n"
        hold += "from epithre_beam.index.versions.lease import hold\n"
        hold += "with hold(Store(sys.argv[1]), 'run'): print('held', flush=True); sys.stdin.read()"
        holder = subprocess.Popen(
            [sys.executable, "-c", hold, str(catalog)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        holder.stdout.readline()
        check("skip", job, "is under way")
        holder.communicate()
        captions = job.with_name("captions.csv")
        captions.write_text("".join([text := captions.read_text(), text.splitlines(keepends=True)[-1]]))
        check("fail", job, "2 times")
    print("airflow: 7 passed, 0 failed")


if __name__ == "__main__":
    main()
