"""What stops a shard."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from forvalue_dagster.options.base import Options


class GateRules(Options):
    """What stops a shard."""

    max_noise_fraction: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="A shard is blocked if the lower end of the 95 % interval of its share of "
        "noisy rows is above; if the estimate alone is, the gate warns.",
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
