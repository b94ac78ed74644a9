"""Options of selection, refinement and attribution."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from forvalue_dagster.options.base import Options


class Selection(Options):
    """Which rows are kept: thresholds first, then the best rows up to the smallest limit given."""

    by: Literal["value", "value_per_token", "alignment"] = Field(
        default="alignment",
        description="The score that ranks rows, larger first. A summed value favours long rows.",
    )
    across_groups: Literal["pooled", "mean", "maximum", "balanced"] = Field(
        default="pooled",
        description="With validation groups: weigh every validation row equally, every group "
        "equally, take a row's best group, or let the groups choose in turn.",
    )
    keep_fraction: float | None = Field(
        default=0.5, gt=0, le=1, description="At most this share of the scored rows."
    )
    keep_count: int | None = Field(default=None, ge=1, description="At most this many rows.")
    token_budget: int | None = Field(
        default=None, ge=1, description="At most this many response tokens."
    )
    min_value: float | None = Field(default=None, description="Rows with less value are dropped.")
    max_noise_probability: float | None = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Rows with a larger noise probability are dropped; needs a noise probe. None "
        "drops none.",
    )
    drop_duplicates: bool = Field(
        default=True, description="Of several rows with the same conversation keep one."
    )

    @model_validator(mode="after")
    def _alignment_has_no_groups(self) -> Self:
        if self.by == "alignment" and self.across_groups != "pooled":
            raise ValueError(
                f"Rows have one alignment, not one for each group; across_groups is "
                f"{self.across_groups!r}. Rank by value or value_per_token, or leave it 'pooled'."
            )
        return self


class Refine(Options):
    """How rows near the selection's boundary are computed again, exactly."""

    max_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="At most this share of the scored rows goes through the model again.",
    )
    first_rows: int = Field(
        default=32,
        ge=1,
        description="Rows nearest to the boundary that are computed first; their errors give the "
        "first band.",
    )
    safety: float = Field(
        default=2.0, ge=1, description="The band is the largest error seen so far times this."
    )


class Attribution(Options):
    """Which pairs of training and validation rows are named."""

    top: int = Field(
        default=10,
        ge=1,
        description="For each row, the number of rows on the other side that help it most to name, "
        "and as many that hurt it most.",
    )
    exact: bool = Field(
        default=False,
        description="For each validation row, compute the pairs of twice as many candidates again "
        "with the model. For training rows, pairs always come from features.",
    )
