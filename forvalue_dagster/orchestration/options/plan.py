"""Which of the graph's optional pieces there are, when it runs, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import dagster as dg
from pydantic import Field, InstanceOf

from forvalue_dagster.options.base import Options
from forvalue_dagster.options.selection import Attribution, Refine
from forvalue_dagster.options.warm_up import WarmUp

# (context of the step, what the worker is to know) → the finished process.
Worker = Callable[[dg.AssetExecutionContext, dict[str, Any]], dg.PipesClientCompletedInvocation]


class Automation(Options):
    """When the graph looks for changes, and how many shards it takes at a time."""

    running: bool = Field(
        default=True,
        description="Whether the sensors, and the schedule, run by default: those that watch rows "
        "and a local model, and the one that rebuilds whatever depends on a change.",
    )
    schedule: str | None = Field(
        default=None,
        description="A cron expression; rows are then looked at by a schedule at its hours, in "
        "place of the sensors that watch them.",
    )
    seconds: int = Field(default=30, ge=1, description="Seconds between two looks of a sensor.")
    shards_per_tick: int = Field(
        default=200,
        ge=1,
        description="At most so many new or changed shards are registered in one look of a "
        "sensor; the schedule takes all.",
    )
    shards_per_run: int = Field(
        default=100, ge=1, description="At most so many shards in a run over many."
    )

    @property
    def status(self) -> dg.DefaultSensorStatus:
        """Of the sensors, by default."""
        return dg.DefaultSensorStatus.RUNNING if self.running else dg.DefaultSensorStatus.STOPPED

    @property
    def schedule_status(self) -> dg.DefaultScheduleStatus:
        """Of the schedule, by default."""
        return dg.DefaultScheduleStatus(self.status.value)

    @property
    def many_shards(self) -> dg.BackfillPolicy:
        """How backfills, and automation, gather shards into runs."""
        return dg.BackfillPolicy.multi_run(self.shards_per_run)


class Compute(Options):
    """Where the steps run that load the model."""

    pool: str | None = Field(default=None, description="Concurrency pool of these steps.")
    step_pools: Mapping[str, str] = Field(
        default_factory=dict,
        description="Step → another pool of it; the steps are named by their asset, or check.",
    )
    op_tags: Mapping[str, Any] = Field(
        default_factory=dict, description="Tags of these steps, for an executor or launcher."
    )
    step_tags: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=dict, description="Step → further tags of it."
    )
    retry_policy: InstanceOf[dg.RetryPolicy] | None = Field(
        default=None, description="Retry policy of these steps."
    )
    worker: Worker | None = Field(
        default=None,
        description="Starts a process that computes features elsewhere "
        "(`forvalue_dagster.worker`); each shard has a run and a process of its own then.",
    )

    def pool_of(self, step: str) -> str | None:
        """Return the pool of a step."""
        return self.step_pools.get(step, self.pool)

    def tags(self, step: str) -> dict[str, Any]:
        """Return the tags of a step."""
        return {**self.op_tags, **self.step_tags.get(step, {})}


@dataclass(frozen=True)
class Plan:
    """Which of the graph's optional pieces there are.

    Attributes:
        scoring: "features" values stored features, "exact" passes rows through the model again.
        refine: compute rows near the selection's boundary exactly; None does not.
        attribution: name the strongest pairs of training and validation rows; None does not.
        warm_up: train an adapter before anything is valued; None does not.
        watches_model: whether the model is a local folder, which is then watched for changes.
        automation: when it runs.
        compute: where.
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
        """Refuse what has no meaning."""
        if self.scoring not in ("features", "exact"):
            raise ValueError(
                f"scoring {self.scoring!r} is unknown; expected 'features' or 'exact'."
            )
        if self.refine is not None and self.scoring == "exact":
            raise ValueError("refine is set, but scoring is 'exact': there is nothing to refine.")
