"""Options of the warm-up."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from forvalue_dagster.options.base import Options


class WarmUp(Options):
    """A LoRA adapter, trained before anything is valued."""

    rows: Literal["validation", "training"] = Field(
        default="validation", description="Train on the validation rows or the raw training rows."
    )
    rank: int = Field(default=16, gt=0, description="Rank of the adapter.")
    alpha: int | None = Field(
        default=None, gt=0, description="Scale of the adapter; twice the rank by default."
    )
    learning_rate: float = Field(
        default=2e-4, gt=0, description="Learning rate at its highest; it falls linearly to zero."
    )
    epochs: float = Field(
        default=1.0, gt=0, description="Passes over the rows; may be a fraction of one."
    )
    max_tokens: int | None = Field(
        default=None,
        gt=0,
        description="Rows are drawn at random until they have this many tokens; None takes all.",
    )
    batch_rows: int = Field(default=8, gt=0, description="Rows of one optimiser step.")
    seed: int = Field(
        default=0,
        description="Seed of the adapter's start, and of the draw and order of rows.",
    )
