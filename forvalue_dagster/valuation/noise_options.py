"""How a noise probe is fitted; apart, so that definitions may name it without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NoiseOptions:
    """How a noise probe is fitted.

    Attributes:
        recipes: names of noise recipes; None for all that are registered.
        copies: damaged copies of each validation row, each by another recipe.
        max_rows: at most so many validation rows, drawn by the seed, are copied.
        seed: of the draw, the damage and the folds.
    """

    recipes: tuple[str, ...] | None = None
    copies: int = 4
    max_rows: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.recipes is not None and not self.recipes:
            raise ValueError("recipes is empty; name one, or None for all.")
        for name in ("copies", "max_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
