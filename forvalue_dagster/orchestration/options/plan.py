"""The graph's optional parts, and the options of automation and compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import dagster as dg
from pydantic import Field, InstanceOf

from forvalue_dagster.options.base import Options
from forvalue_dagster.options.selection import Attribution, Refine
from forvalue_dagster.options.warm_up import WarmUp

# (context of the step, the worker's job) → the finished process.
Worker = Callable[[dg.AssetExecutionContext, dict[str, Any]], dg.PipesClientCompletedInvocation]


class Automation(Options):
    """When to look for changes, and how many shards to process at a time."""

    running: bool = Field(
        default=True,
        description="Whether the sensors and the schedule run by default: those that watch rows "
        "and a local model, and the one that rebuilds whatever depends on a change.",
    )
    schedule: str | None = Field(
        default=None,
        description="A cron expression for a schedule that looks for changed rows, in place of "
        "the sensors that watch them.",
    )
    seconds: int = Field(default=30, ge=1, description="Seconds between two looks of a sensor.")
    shards_per_tick: int = Field(
        default=200,
        ge=1,
        description="At most this many new or changed shards are registered in one look of a "
        "sensor; the schedule takes all.",
    )
    shards_per_run: int = Field(
        default=100, ge=1, description="At most this many shards in a run over many."
    )

    @property
    def status(self) -> dg.DefaultSensorStatus:
        """The sensors' default status."""
        return dg.DefaultSensorStatus.RUNNING if self.running else dg.DefaultSensorStatus.STOPPED

    @property
    def schedule_status(self) -> dg.DefaultScheduleStatus:
        """The schedule's default status."""
        return dg.DefaultScheduleStatus(self.status.value)

    @property
    def many_shards(self) -> dg.BackfillPolicy:
        """The policy by which backfills and automation group shards into runs."""
        return dg.BackfillPolicy.multi_run(self.shards_per_run)


class Compute(Options):
    """Where the steps that load the model run."""

    pool: str | None = Field(default=None, description="Concurrency pool of these steps.")
    step_pools: Mapping[str, str] = Field(
        default_factory=dict,
        description="Step → its own pool; a step has the name of its asset or check.",
    )
    op_tags: Mapping[str, Any] = Field(
        default_factory=dict, description="Tags of these steps, for an executor or launcher."
    )
    step_tags: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=dict, description="Step → further tags of this step."
    )
    retry_policy: InstanceOf[dg.RetryPolicy] | None = Field(
        default=None, description="Retry policy of these steps."
    )
    worker: Worker | None = Field(
        default=None,
        description="Function that starts a process to compute features elsewhere "
        "(`forvalue_dagster.worker`); each shard then has its own run and process.",
    )

    def pool_of(self, step: str) -> str | None:
        """Return the pool of a step."""
        return self.step_pools.get(step, self.pool)

    def tags(self, step: str) -> dict[str, Any]:
        """Return the tags of a step."""
        return {**self.op_tags, **self.step_tags.get(step, {})}


@dataclass(frozen=True)
class Plan:
    """The graph's optional parts.

    Attributes:
        scoring: "features" scores from stored features, "exact" passes rows through the model.
        refine: options of the refinement; None for no refinement.
        attribution: options of the attribution; None for no attribution.
        warm_up: options of the warm-up; None for no warm-up.
        watches_model: whether the model is a local folder, which is then watched for changes.
        automation: options of automation.
        compute: options of the steps that load the model.
    """

    scoring: Literal["features", "exact"] = "features"
    refine: Refine | None = None
    attribution: Attribution | None = None
    warm_up: WarmUp | None = None
    watches_model: bool = False
    automation: Automation = field(default_factory=Automation)
    compute: Compute = field(default_factory=Compute)

    @property
    def keeps_features(self) -> bool:
        """Whether anything reads token features."""
        return self.scoring == "features" or self.attribution is not None

    def __post_init__(self) -> None:
        """Check that the options do not contradict each other."""
        if self.scoring not in ("features", "exact"):
            raise ValueError(
                f"scoring {self.scoring!r} is unknown; expected 'features' or 'exact'."
            )
        if self.refine is not None and self.scoring == "exact":
            raise ValueError("refine is set, but scoring is 'exact': there is nothing to refine.")
