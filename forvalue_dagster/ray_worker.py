"""The feature pass of one shard as a job on a Ray cluster: `fv.Compute(worker=RayWorker(...))`.

The job runs `forvalue_dagster.worker`: the cluster's nodes have this package and see the storage.
Dagster's side has `forvalue-dagster[ray]` and reaches the cluster's dashboard.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dagster as dg  # noqa: TID251

if TYPE_CHECKING:
    from dagster_ray import PipesRayJobClient
    from ray.job_submission import JobSubmissionClient


@dataclass(frozen=True)
class RayWorker:
    """Runs each shard's worker as a Ray job.

    Attributes:
        command: the command that starts the worker on a node of the cluster.
        address: address of the cluster's dashboard (http://head:8265); RAY_ADDRESS overrides it.
        gpus: GPUs to reserve; the job sees only these. With 0 GPUs and CPUs it runs on the head.
        cpus: CPUs to reserve.
        environment: environment variables of the job, which has none of Dagster's.
        runtime_env: Ray's `runtime_env`, for what a node's image lacks: `working_dir`, `pip`, ...
        client: further arguments of `dagster_ray.PipesRayJobClient`: headers, cookies, verify.
        poll_interval: seconds between looks at the job.
    """

    command: Sequence[str] = ("python", "-m", "forvalue_dagster.worker")
    address: str | None = None
    gpus: float = 1
    cpus: float = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    client: Mapping[str, Any] = field(default_factory=dict)
    poll_interval: float = 5

    def __call__(
        self, context: dg.AssetExecutionContext, job: dict[str, Any]
    ) -> dg.PipesClientCompletedInvocation:
        """Run the worker of a shard to its end.

        Raises:
            ImportError: if dagster-ray is not installed.
            RuntimeError: if the job failed or was stopped.
            dagster.Failure: if the run was cancelled, or what the job reported did not arrive.
        """
        # One for each job: its message reader serves once, and silently gives nothing after.
        pipes = self._pipes_client()
        cluster = pipes.client
        about = {
            "dagster/asset": context.asset_key.to_user_string(),
            "dagster/partition": context.partition_key,
        }
        _stop_strays(cluster, context, about)
        # A name of our own, so that the job can be stopped whatever happens while it is started.
        name = f"dagster-{context.run_id}-{uuid4().hex[:8]}"
        variables = {**self.runtime_env.get("env_vars", {}), **self.environment}
        try:
            done: dg.PipesClientCompletedInvocation = pipes.run(
                context=context,
                extras=job,
                # New dicts: the client writes into those that it is given.
                submit_job_params={
                    # exec: without it, a node that dies leaves the worker behind.
                    "entrypoint": f"exec {shlex.join(self.command)}",
                    "submission_id": name,
                    "entrypoint_num_gpus": self.gpus,
                    "entrypoint_num_cpus": self.cpus,
                    "runtime_env": {**self.runtime_env, "env_vars": variables},
                    "metadata": dict(about),
                },
            )
        except BaseException as error:
            # Also if the cluster just did not answer: there must not be a second worker.
            _stop(cluster, name)
            run = context.instance.get_run_by_id(context.run_id)
            if run is not None and run.status == dg.DagsterRunStatus.CANCELING:
                # A retry policy would start the step again (in one process; dagster#15026).
                raise dg.Failure(f"Cancelled; job {name} stopped.", allow_retries=False) from error
            raise
        reported = done.get_results(implicit_materializations=False)
        if not any(isinstance(result, dg.MaterializeResult) for result in reported):
            # A broken connection ends the reader of the job's log without an error.
            raise dg.Failure(f"Ray job {name} succeeded, but what it reported did not arrive.")
        return done

    def _pipes_client(self) -> PipesRayJobClient:
        try:
            from dagster_ray import PipesRayJobClient
        except ImportError as error:
            raise ImportError(
                "A RayWorker needs dagster-ray and Ray: pip install 'forvalue-dagster[ray]'."
            ) from error
        return PipesRayJobClient(
            address=self.address, poll_interval=self.poll_interval, **self.client
        )


def _stop_strays(
    cluster: JobSubmissionClient, context: dg.AssetExecutionContext, about: Mapping[str, str]
) -> None:
    """Stop the shard's jobs of runs, or attempts of this one, that are over."""
    for job in cluster.list_jobs():
        known = job.metadata or {}
        if not about.items() <= known.items() or job.status.is_terminal():
            continue
        run = context.instance.get_run_by_id(known.get("dagster/run-id", ""))
        # A run that this instance does not know is another deployment's.
        if run is not None and (run.is_finished or run.run_id == context.run_id):
            context.log.warning(
                f"Stopping Ray job {job.submission_id}, whose run or attempt is over."
            )
            _stop(cluster, job.submission_id)


def _stop(cluster: JobSubmissionClient, name: str, seconds: float = 15) -> None:
    """Stop a job, if it runs, and wait for its end."""
    end = time.monotonic() + seconds
    with suppress(RuntimeError):  # there is no such job
        while time.monotonic() < end:
            with suppress(OSError):  # no answer now
                if cluster.get_job_status(name).is_terminal():
                    return
                cluster.stop_job(name)
            time.sleep(0.5)
