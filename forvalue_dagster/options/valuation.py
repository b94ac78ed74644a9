"""Options of the valuation, the features and the noise probe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from forvalue_dagster.options.base import Options

# Dagster's configuration has no field that is a number or a word: "auto" is stored as None.
_Auto = Annotated[int | None, BeforeValidator(lambda value: None if value == "auto" else value)]


class FeaturePrecision(Options):
    """The precision of the stored features of each token."""

    top_errors: int = Field(
        default=16,
        ge=1,
        description="Number of entries of each token's prediction error to store; a larger number "
        "than the vocabulary stores all.",
    )
    hidden: Literal["int8", "float16", "float32"] = Field(
        default="int8",
        description="Type of the stored last hidden states; with 'float32' the prediction errors "
        "are float32, too.",
    )


class NoiseOptions(Options):
    """How a noise probe is fitted on damaged copies of the validation rows."""

    recipes: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Names of noise recipes; by default all.",
    )
    copies: int = Field(
        default=4,
        ge=1,
        description="Damaged copies of each validation row, each by a different recipe.",
    )
    max_rows: int = Field(
        default=300,
        ge=2,
        description="At most this many validation rows, drawn at random, are copied.",
    )
    seed: int = Field(default=0, description="Seed of the draw, the damage and the folds.")


class ValuationSettings(Options):
    """How rows are valued, without the options of features and noise probe."""

    tokens: Literal["response", "all"] = Field(
        default="response", description="Which tokens are scored."
    )
    preconditioner: Literal["none", "activation"] = Field(
        default="activation",
        description="'activation' measures values in the metric of the hidden states' second "
        "moment; 'none' is the paper's plain score.",
    )
    damping: float = Field(
        default=0.1,
        gt=0,
        description="Damping of the preconditioner, relative to the mean eigenvalue.",
    )
    centre: bool = Field(
        default=False,
        description="Compare hidden states after subtracting the validation tokens' mean.",
    )
    batch_tokens: _Auto = Field(
        default=None,
        ge=1,
        description="Tokens in a batch, padding included. Changes speed and memory, and scores "
        "only by rounding. By default ('auto'), what a GPU's free memory holds, up to 16,384; "
        "2,048 on a CPU.",
    )
    batch_image_mb: float = Field(
        default=128.0,
        gt=0,
        description="Megabytes (10⁶ bytes) of prepared images in a batch.",
    )
    image_workers: int = Field(
        default=2,
        ge=0,
        description="Threads that decode and resize images while the model is busy; with 0 images "
        "are prepared when they are needed.",
    )
    remembered_images: int = Field(
        default=0,
        ge=0,
        description="Rows whose prepared images each thread keeps, to use them again where the "
        "same images come again.",
    )
    window_rows: _Auto = Field(
        default=None,
        ge=1,
        description="Rows that share batches and are stored as one part of a feature table; a "
        "killed feature pass loses at most one part. By default ('auto'), 512 on a CPU and up to "
        "1,024 on a GPU.",
    )
    memory_limit_gb: float | None = Field(
        default=None,
        gt=0,
        description="Memory limit in 10⁹ bytes, of the process on a CPU, of torch on a GPU. "
        "Batches that need more are halved and tried again, as when memory runs out.",
    )

    @property
    def read_rows(self) -> int:
        """Rows of a stored table that are read at a time."""
        return self.window_rows or 512


class ValuationOptions(ValuationSettings):
    """How rows are valued."""

    features: FeaturePrecision = Field(
        default=FeaturePrecision(), description="Precision of the stored features of each token."
    )
    noise: NoiseOptions | None = Field(
        default=NoiseOptions(),
        description="Options of the noise probe; None fits none.",
    )
