"""Typed configuration: what is kept, what blocks, what warns."""

from __future__ import annotations

from typing import Literal

import dagster as dg
from pydantic import Field

from forvalue_dagster.engine.selection import Selection
from forvalue_dagster.quality.verdicts import GateRules
from forvalue_dagster.storage.in_yaml import InYaml


class SelectionPolicy(dg.ConfigurableResource["SelectionPolicy"], InYaml, extra="forbid"):
    """Which rows of the shards that passed go into the filtered dataset."""

    by: Literal["value", "value_per_token", "alignment"] = Field(
        default="alignment",
        description="The score that ranks rows. A summed value favours long rows.",
    )
    across_groups: Literal["pooled", "mean", "maximum", "balanced"] = Field(
        default="pooled",
        description="With validation groups: count every validation row alike, every group alike, "
        "take a row's best group, or let the groups choose in turn.",
    )
    keep_fraction: float | None = Field(
        default=0.5, gt=0, le=1, description="At most this share of the scored rows."
    )
    keep_count: int | None = Field(default=None, ge=1, description="At most so many rows.")
    token_budget: int | None = Field(
        default=None, ge=1, description="At most so many response tokens."
    )
    min_value: float | None = Field(default=None, description="Rows valued less are dropped.")
    max_noise_probability: float | None = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Rows more probably noisy are dropped; needs a noise probe. None drops none.",
    )
    drop_duplicates: bool = Field(
        default=True, description="Keep one of several rows with the same conversation."
    )

    def selection(self) -> Selection:
        """Return the policy as the engine takes it."""
        return Selection(**{name: getattr(self, name) for name in Selection.__dataclass_fields__})


# Settings of the gate that no shard's verdict rests on.
NOT_OF_SHARDS = ("on_blocked_shard", "allow_overrides", "override_reason")


class GatePolicy(dg.ConfigurableResource["GatePolicy"], InYaml, extra="forbid"):
    """What stops a shard, and what a stopped shard stops."""

    max_noise_fraction: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="A shard is blocked if the lower end of the 95 % interval of its share of "
        "noisy rows is above; if the estimate alone is, the gate warns.",
    )
    on_blocked_shard: Literal["fail", "exclude"] = Field(
        default="fail",
        description="'fail' stops the filtered dataset; 'exclude' builds it from the shards that "
        "passed and names the others in the manifest.",
    )
    uncertified: Literal["fail", "warn"] = Field(
        default="fail",
        description="What happens to a shard that cannot be judged: the noise probe proves "
        "nothing, its distinct rows are fewer than 3 / max_noise_fraction, too many are like "
        "neither clean nor damaged ones, or the interval is too wide.",
    )
    domain_shift: Literal["fail", "warn", "judge"] = Field(
        default="fail",
        description="A shard whose prompts are not like the validation prompts is stopped, let "
        "through unjudged, or judged by an estimate that is not calibrated for it.",
    )
    max_shift: float = Field(
        default=0.7,
        ge=0.5,
        le=1,
        description="ROC-AUC of a shard's prompts against the validation prompts above which the "
        "shard counts as shifted.",
    )
    min_probe_auc: float = Field(
        default=0.8,
        ge=0.5,
        le=1,
        description="Cross-fitted AUC of the noise probe below which it proves nothing.",
    )
    min_probe_rows: int = Field(
        default=30, ge=2, description="Validation rows below which the noise probe proves nothing."
    )

    allow_overrides: bool = Field(
        default=False,
        description="Whether a run's configuration may change this policy, the selection's, or "
        "where files lie; else a dataset that was made so is not certified.",
    )
    override_reason: str | None = Field(
        default=None,
        description="Why a run's configuration changes the policy; for the run's configuration.",
    )

    def rules(self) -> GateRules:
        """Return what stops a shard."""
        return GateRules(**{name: getattr(self, name) for name in GateRules.__dataclass_fields__})


class WarningPolicy(dg.ConfigurableResource["WarningPolicy"], InYaml, extra="forbid"):
    """Thresholds of the checks that warn and never block."""

    near_leak_similarity: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Share of word triples in common from which a training row nearly equals a "
        "validation row.",
    )
    max_harmful_share: float = Field(
        default=0.5, ge=0, le=1, description="Share of a shard's rows with a negative value."
    )
    max_drift: float = Field(
        default=0.25,
        gt=0,
        description="Population stability index of a shard's values against its last "
        "materialisation; 0.1 is little, 0.25 a lot.",
    )
    max_truncated_share: float = Field(
        default=0.1, ge=0, le=1, description="Share of scored rows cut to the model's window."
    )
    max_skipped_share: float = Field(
        default=0.05, ge=0, le=1, description="Share of rows without a score."
    )
    min_group_rows: int = Field(
        default=10, ge=1, description="Validation rows that each group should have."
    )
    max_validation_noise: float = Field(
        default=0.1, ge=0, le=1, description="Share of validation rows that look damaged."
    )
    min_source_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="A shard is starved if the selection keeps less than this share of what an "
        "even selection would keep of it.",
    )
