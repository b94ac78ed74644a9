"""What a valuation is asked for; plain data, so that definitions may name it without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ValuationOptions:
    """How rows are valued.

    Attributes:
        tokens: score the "response" or "all" tokens.
        preconditioner: "activation" measures values in the metric of the hidden states' second
            moment; "none" is the paper's plain score.
        damping: of the preconditioner, relative to the mean eigenvalue.
        batch_tokens: tokens in a batch, padding included. Changes speed and memory, never a
            score beyond rounding.
        window_rows: rows that are tokenised at a time and sorted by length among themselves.
    """

    tokens: Literal["response", "all"] = "response"
    preconditioner: Literal["none", "activation"] = "activation"
    damping: float = 0.1
    batch_tokens: int = 2048
    window_rows: int = 1024

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        for name in ("batch_tokens", "window_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
