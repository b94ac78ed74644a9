"""The gate's rules: what blocks a shard."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from forvalue_dagster.options.base import Options


class GateRules(Options):
    """The rules that block a shard."""

    max_noise_fraction: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="Largest share of noisy rows. A shard is blocked if the lower end of the 95 % "
        "interval of its share is above it; if only the estimate is, the gate warns.",
    )
    uncertified: Literal["fail", "warn"] = Field(
        default="fail",
        description="What to do with a shard whose noise cannot be estimated: the noise probe is "
        "not reliable, there are fewer than 3 / max_noise_fraction distinct rows, too many are "
        "like neither clean nor damaged ones, or the interval is too wide.",
    )
    domain_shift: Literal["fail", "warn", "judge"] = Field(
        default="fail",
        description="What to do with a shard whose prompts are not like the validation prompts: "
        "block it, let it through without an estimate, or use an estimate that is not calibrated "
        "for it.",
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
        description="Cross-fitted AUC below which the noise probe is not reliable.",
    )
    min_probe_rows: int = Field(
        default=30, ge=2, description="Validation rows below which the noise probe is not reliable."
    )
