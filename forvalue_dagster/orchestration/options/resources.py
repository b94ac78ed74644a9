"""The resource `Valuation`: the model and the valuation options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from forvalue_dagster.options.model import ModelConfig
from forvalue_dagster.options.valuation import (
    FeaturePrecision,
    NoiseOptions,
    ValuationOptions,
    ValuationSettings,
)
from forvalue_dagster.orchestration.naming import resolved
from forvalue_dagster.storage.in_yaml import InYaml

if TYPE_CHECKING:
    from forvalue_dagster.models.loading import LoadedModel


# The options that change features; further ones that change the profile; and the scores.
FEATURE_SETTINGS = (
    *("name", "adapter", "revision", "dtype", "quantization", "max_length", "chat_template"),
    *("template_date", "tokens", "top_errors", "hidden"),
)
SCORE_SETTINGS = ("preconditioner", "damping", "centre")
PROFILE_SETTINGS = (
    *FEATURE_SETTINGS,
    *SCORE_SETTINGS,
    *("noise_probe", "noise_recipes", "noise_copies", "noise_rows"),
)


class Valuation(
    dg.ConfigurableResource["Valuation"],
    FeaturePrecision,
    ValuationSettings,
    ModelConfig,
    InYaml,
    extra="forbid",
):
    """The model, and how it values rows."""

    thumbnails: int = Field(
        default=0,
        ge=0,
        le=20,
        description="Show the images of this many of the most and least valuable rows in the "
        "metadata of value_scores. They are then in the event log.",
    )
    fidelity_rows: int = Field(
        default=50,
        ge=2,
        description="Rows of each shard that are also valued exactly, to check the features.",
    )
    min_fidelity: float = Field(
        default=0.99,
        ge=-1,
        le=1,
        description="Rank correlation with the exact values below which the check warns.",
    )
    noise_probe: bool = Field(
        default=True,
        description="Fit a noise probe on damaged copies of the validation rows. Without it no "
        "shard can be certified.",
    )
    noise_recipes: list[str] | None = NoiseOptions.field("recipes")
    noise_copies: int = NoiseOptions.field("copies")
    noise_rows: int = NoiseOptions.field("max_rows")

    def local_folders(self) -> list[Path]:
        """Return the local folders that the model is loaded from."""
        named = [self.name, *([self.adapter] if self.adapter else [])]
        return [Path(name) for name in named if Path(name).is_dir()]

    def config(self, adapter: Path | None = None) -> ModelConfig:
        """Return the model's configuration, with an adapter trained here if one is given."""
        config = ModelConfig.of(self)
        return config if adapter is None else config.model_copy(update={"adapter": str(adapter)})

    @contextmanager
    def session(self, adapter: Path | None = None) -> Iterator[LoadedModel]:
        """Lend the model, loaded once for each process; a cancelled run frees its memory."""
        from forvalue_dagster.models.loading import load_model, release_model

        try:
            yield load_model(self.config(adapter))
        except BaseException as error:
            # Cancelled, not failed: the process may continue while still holding the GPU.
            if not isinstance(error, Exception):
                release_model()
            raise

    def options(self) -> ValuationOptions:
        """Return how rows are valued."""
        noise = NoiseOptions(
            recipes=tuple(self.noise_recipes) if self.noise_recipes else None,
            copies=self.noise_copies,
            max_rows=self.noise_rows,
        )
        return ValuationOptions(
            **dict(ValuationSettings.of(self)),
            features=FeaturePrecision.of(self),
            noise=noise if self.noise_probe else None,
        )


def settings(valuation: Valuation, names: Sequence[str]) -> dict[str, Any]:
    """Return some settings of a valuation, for a code version."""
    known = resolved(valuation)
    return {name: known[name] for name in names}
