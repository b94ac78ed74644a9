"""What the graph's pieces are called, how they are partitioned, and which of them there are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import dagster as dg

from forvalue_dagster.engine.options import Attribution, Refine
from forvalue_dagster.models.warm_up_config import WarmUp

# Raised when the meaning of a stored table changes: it is then made again.
CODE_VERSION = "4"
# Files outside Dagster, of which sensors report what changed.
TRAINING_FILES, TRAINING_SHARDS = "training_files", "training_shards"
VALIDATION_FILES, MODEL_FILES = "validation_files", "model_files"
# The blocking checks of a shard.
ROW_EXPECTATIONS = "row_expectations"
ROW_CONSERVATION = "row_conservation"
LEAKAGE = "validation_leakage"
NOISE_FRACTION = "noise_fraction"
BLOCKING = frozenset({ROW_EXPECTATIONS, ROW_CONSERVATION, LEAKAGE, NOISE_FRACTION})


def code_version(*settings: object) -> str:
    """Return the code version of an asset whose content depends on settings, too.

    Dagster sees only code versions: so a changed setting makes again what rests on it.
    """
    plain = json.dumps(settings, sort_keys=True, default=str)
    return f"{CODE_VERSION}-{sha256(plain.encode()).hexdigest()[:8]}"


def resolved(
    resource: dg.ConfigurableResource[Any], *, without: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a resource's settings as plain values, environment variables looked up."""
    settings = {name: getattr(resource, name) for name in type(resource).model_fields}
    return {
        name: value.get_value() if isinstance(value, dg.EnvVar) else value
        for name, value in settings.items()
        if name not in without
    }


@dataclass(frozen=True)
class Naming:
    """Names of one instance of the graph; two instances differ in the prefix.

    Attributes:
        prefix: put before every asset key; also names jobs, sensors and partitions.
        group: the group in the UI.
        upstream_shards: partitions of the asset that yields the rows; None if they are files.
    """

    prefix: Sequence[str] = ()
    group: str = "forvalue"
    upstream_shards: dg.PartitionsDefinition[str] | None = None

    @property
    def shards(self) -> dg.PartitionsDefinition[str]:
        """The shards of raw data, one partition each."""
        return self.upstream_shards or dg.DynamicPartitionsDefinition(name=self.name("shards"))

    def registered(self, instance: dg.DagsterInstance) -> list[str]:
        """Return the shards that there are."""
        return list(self.shards.get_partition_keys(dynamic_partitions_store=instance))

    def key(self, name: str) -> dg.AssetKey:
        """Return the key of an asset."""
        return dg.AssetKey([*self.prefix, name])

    @property
    def files(self) -> dg.AssetSelection:
        """What lies outside Dagster; a sensor may never have reported it."""
        names = (TRAINING_FILES, TRAINING_SHARDS, VALIDATION_FILES, MODEL_FILES)
        return dg.AssetSelection.assets(*map(self.key, names))

    def name(self, name: str) -> str:
        """Return the name of a job, a sensor or a set of partitions."""
        return "_".join([*self.prefix, "forvalue", name])


# (context of the step, what the worker is to know) → the finished process.
Worker = Callable[[dg.AssetExecutionContext, dict[str, Any]], dg.PipesClientCompletedInvocation]


@dataclass(frozen=True)
class Plan:
    """Which of the graph's optional pieces there are, and where steps with a model run.

    Attributes:
        scoring: "features" values stored features, "exact" passes rows through the model again.
        refine: compute rows near the selection's boundary exactly; None does not.
        attribution: name the strongest pairs of training and validation rows; None does not.
        warm_up: train an adapter before anything is valued; None does not.
        watches_model: whether the model is a local folder, which is then watched for changes.
        pool: concurrency pool of the steps that run the model.
        op_tags: tags of those steps, for an executor or launcher.
        retry_policy: of those steps.
        worker: starts a process that computes features elsewhere; None computes them in the step.
        shards_per_run: at most so many shards in a run over many.
    """

    scoring: Literal["features", "exact"] = "features"
    refine: Refine | None = None
    attribution: Attribution | None = None
    warm_up: WarmUp | None = None
    watches_model: bool = False
    pool: str | None = None
    op_tags: Mapping[str, Any] | None = None
    retry_policy: dg.RetryPolicy | None = None
    worker: Worker | None = None
    shards_per_run: int = 100

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.scoring not in ("features", "exact"):
            raise ValueError(
                f"scoring {self.scoring!r} is unknown; expected 'features' or 'exact'."
            )
        if self.refine is not None and self.scoring == "exact":
            raise ValueError("refine is set, but scoring is 'exact': there is nothing to refine.")
        if self.shards_per_run < 1:
            raise ValueError(f"shards_per_run must be at least 1; got {self.shards_per_run}.")

    @property
    def many_shards(self) -> dg.BackfillPolicy:
        """How backfills, and automation, gather shards into runs."""
        return dg.BackfillPolicy.multi_run(self.shards_per_run)
