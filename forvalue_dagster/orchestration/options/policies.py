"""Policies: which rows are kept, what blocks a shard, what warns."""

from __future__ import annotations

from typing import Literal

import dagster as dg
from pydantic import Field

from forvalue_dagster.options.gate import GateRules
from forvalue_dagster.options.selection import Selection
from forvalue_dagster.storage.in_yaml import InYaml


class SelectionPolicy(
    dg.ConfigurableResource["SelectionPolicy"], Selection, InYaml, extra="forbid"
):
    """Which rows of the shards that passed go into the filtered dataset."""


# Settings of the gate that no shard's verdict depends on.
NOT_OF_SHARDS = ("on_blocked_shard", "allow_overrides", "override_reason")


class GatePolicy(dg.ConfigurableResource["GatePolicy"], GateRules, InYaml, extra="forbid"):
    """What blocks a shard, and what a blocked shard stops."""

    on_blocked_shard: Literal["fail", "exclude"] = Field(
        default="fail",
        description="'fail' stops the filtered dataset; 'exclude' builds it from the shards that "
        "passed and names the others in the manifest.",
    )
    allow_overrides: bool = Field(
        default=False,
        description="Whether a run's configuration may change this policy, the selection policy "
        "or the storage. Otherwise a dataset made with such a change is not certified.",
    )
    override_reason: str | None = Field(
        default=None,
        description="Reason for changing the policy; to be set in the run's configuration.",
    )


class WarningPolicy(dg.ConfigurableResource["WarningPolicy"], InYaml, extra="forbid"):
    """Thresholds of the checks that warn and never block."""

    near_leak_similarity: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Smallest share of common word triples at which a training row nearly equals "
        "a validation row.",
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
        description="A shard is starved if the selection keeps less than this share of the rows "
        "that an even selection would keep of it.",
    )
