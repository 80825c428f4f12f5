"""The nightly pair as an Airflow DAG: run, then prune. For Airflow 3.

The JSON document of the run is the task's XCom: status, version, counts, costs; a few kilobytes. The worker needs
`epithre-beam` and the key (`EPITHRE_KEY`). If `epithre-beam` is not in Airflow's environment, set its full path in
`EPITHRE_BEAM`.
"""

import json
import os
import subprocess
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

PROGRAM = os.environ.get("EPITHRE_BEAM", "epithre-beam")
JOB = os.environ.get("EPITHRE_JOB", "/srv/epithre/job.yaml")
CATALOG = os.environ.get("EPITHRE_CATALOG", "/srv/epithre/catalog")


def call(*arguments: str) -> tuple[int, str]:
    """The exit code and the standard output. Log lines go to standard error and therefore into the task's log."""
    process = subprocess.Popen([PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        output, _ = process.communicate()
    finally:
        if process.poll() is None:  # for example on a timeout; finished units are kept
            process.terminate()
            process.wait(timeout=40)
    return process.returncode, output


@dag(
    schedule="17 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=ZoneInfo("Asia/Jakarta")),
    catchup=False,
    max_active_runs=1,
    tags=["epithre"],
)
def epithre_nightly() -> None:
    # Longer than the 300 s after which another worker may replace the lease.
    @task(retries=3, retry_delay=timedelta(minutes=15), execution_timeout=timedelta(hours=20))
    def run() -> dict[str, Any]:
        code, output = call("run", JOB, "--json", "--log-format", "text")
        outcome: dict[str, Any] = json.loads(output)
        if code == 4:
            raise AirflowSkipException(outcome["message"])  # another run does the work; prune is skipped too
        # 2: the job is wrong; 3: a gate holds it back; stopped: each retry might spend the limit again; source: the
        # data breaks a rule, such as a wrong number or a duplicate id.
        if code in {2, 3} or outcome["status"] == "stopped" or outcome.get("code") == "source":
            raise AirflowFailException(outcome["message"])
        if code:
            raise AirflowException(outcome["message"])  # a transient failure: retried
        return outcome

    @task
    def prune(outcome: dict[str, Any]) -> str:
        """Only after a success: no version has the units of an unfinished run yet."""
        code, output = call("versions", "prune", CATALOG, "--keep", "7")
        if code:
            raise AirflowException(f"prune ended with {code} after {outcome['version']}: see the log.")
        return output

    prune(run())


epithre_nightly()
