"""How a model is warmed up; plain data, so that definitions may name it without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class WarmUpError(RuntimeError):
    """The adapter cannot be trained; the message says why."""


@dataclass(frozen=True)
class WarmUp:
    """A LoRA adapter, trained before anything is valued.

    Attributes:
        rows: train on the trusted "validation" rows or on the raw "training" rows.
        rank: of the adapter.
        alpha: scale of the adapter; twice the rank by default.
        learning_rate: at its highest; it falls linearly to zero.
        epochs: passes over the rows, at least a fraction of one.
        max_tokens: rows are drawn at random until they have so many tokens; None takes all.
        batch_rows: rows of one optimiser step.
        seed: of the adapter's start, and of the draw and order of rows.
    """

    rows: Literal["validation", "training"] = "validation"
    rank: int = 16
    alpha: int | None = None
    learning_rate: float = 2e-4
    epochs: float = 1.0
    max_tokens: int | None = None
    batch_rows: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.rows not in ("validation", "training"):
            raise ValueError(f"rows {self.rows!r} is unknown; expected 'validation' or 'training'.")
        for name in ("rank", "alpha", "learning_rate", "epochs", "max_tokens", "batch_rows"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive; got {value}.")
