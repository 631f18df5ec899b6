"""The nightly pipeline as a Dagster job: one op, its stages in the op's log, its sizes as metadata."""

import json
import subprocess

import dagster


@dagster.op(retry_policy=dagster.RetryPolicy(max_retries=2, delay=600))
def run_nightly(context: dagster.OpExecutionContext) -> dict:
    done = subprocess.run(
        ["sparse", "pipeline", "run", "examples/nightly", "--json"],
        cwd="/srv/models",
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == 2 or not done.stdout:
        raise dagster.Failure("the pipeline is wrong; see the log", allow_retries=False)
    report = json.loads(done.stdout)
    for stage in report["stages"]:
        context.log.info("%s: %s: %s", stage["stage"], stage["status"], stage["error"] or stage["reason"])
    if done.returncode != 0:
        raise dagster.Failure(f"run {report['run']}: {report['status']}", allow_retries=done.returncode == 1)
    return report


@dagster.job
def nightly():
    run_nightly()


defs = dagster.Definitions(
    jobs=[nightly],
    schedules=[
        dagster.ScheduleDefinition(
            job=nightly, cron_schedule="0 2 * * *", execution_timezone="Europe/Berlin"
        )
    ],
)
