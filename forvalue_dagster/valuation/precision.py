"""How much of a token its features keep; apart, so that definitions may name it without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HiddenPrecision = Literal["int8", "float16", "float32"]


@dataclass(frozen=True)
class FeaturePrecision:
    """How much of a token is kept.

    Attributes:
        top_errors: k, the entries of the prediction error; the whole vocabulary if larger.
        hidden: how last hidden states are rounded; "float32" keeps the errors in float32, too.
    """

    top_errors: int = 16
    hidden: HiddenPrecision = "int8"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.top_errors < 1:
            raise ValueError(f"top_errors must be at least 1; got {self.top_errors}.")
        if self.hidden not in ("int8", "float16", "float32"):
            raise ValueError(
                f"hidden {self.hidden!r} is unknown; expected 'int8', 'float16' or 'float32'."
            )
