"""What the graph's pieces are called, how they are partitioned, and which of them there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import dagster as dg

from forvalue_dagster.engine.options import Attribution, Refine
from forvalue_dagster.models.warm_up_config import WarmUp

# Raised when the meaning of a stored table changes: Dagster then shows what is out of date.
CODE_VERSION = "3"
# Blocking checks that the filtered dataset asks for again, beside the noise gate.
ROW_EXPECTATIONS = "row_expectations"
LEAKAGE = "validation_leakage"
ROW_CONSERVATION = "row_conservation"


@dataclass(frozen=True)
class Naming:
    """Names of one instance of the graph; two instances differ in the prefix.

    Attributes:
        prefix: put before every asset key; also names jobs, sensor and partitions.
        group: the group in the UI.
    """

    prefix: Sequence[str] = ()
    group: str = "forvalue"

    @property
    def shards(self) -> dg.DynamicPartitionsDefinition:
        """The shards of raw data, one partition each."""
        return dg.DynamicPartitionsDefinition(name=self.name("shards"))

    def key(self, name: str) -> dg.AssetKey:
        """Return the key of an asset."""
        return dg.AssetKey([*self.prefix, name])

    def name(self, name: str) -> str:
        """Return the name of a job, a sensor or a set of partitions."""
        return "_".join([*self.prefix, "forvalue", name])


@dataclass(frozen=True)
class Plan:
    """Which of the graph's optional pieces there are, and where steps with a model run.

    Attributes:
        scoring: "features" values stored features, "exact" passes rows through the model again.
        refine: compute rows near the selection's boundary exactly; None does not.
        attribution: name the strongest pairs of training and validation rows; None does not.
        warm_up: train an adapter before anything is valued; None does not.
        pool: concurrency pool of the steps that run the model.
        op_tags: tags of those steps, for an executor or launcher.
    """

    scoring: Literal["features", "exact"] = "features"
    refine: Refine | None = None
    attribution: Attribution | None = None
    warm_up: WarmUp | None = None
    pool: str | None = None
    op_tags: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.scoring not in ("features", "exact"):
            raise ValueError(
                f"scoring {self.scoring!r} is unknown; expected 'features' or 'exact'."
            )
        if self.refine is not None and self.scoring == "exact":
            raise ValueError("refine is set, but scoring is 'exact': there is nothing to refine.")
