"""What a valuation is asked for; plain data, so that definitions may name it without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from forvalue_dagster.valuation.noise_options import NoiseOptions
from forvalue_dagster.valuation.precision import FeaturePrecision


@dataclass(frozen=True)
class ValuationOptions:
    """How rows are valued.

    Attributes:
        tokens: score the "response" or "all" tokens.
        preconditioner: "activation" measures values in the metric of the hidden states' second
            moment; "none" is the paper's plain score.
        damping: of the preconditioner, relative to the mean eigenvalue.
        centre: compare hidden states after subtracting the validation tokens' mean.
        batch_tokens: tokens in a batch, padding included. Changes speed and memory, never a
            score beyond rounding. "auto" takes what the device's free memory holds, up to 16,384,
            and 2,048 on a CPU.
        batch_image_mb: megabytes (10⁶ bytes) of prepared images in a batch.
        image_workers: threads that decode and resize images while the model is busy; with none
            they are prepared when they are needed.
        remembered_images: rows whose prepared images each thread keeps, to be used again where the
            same images come again; for data that ask much about few images.
        window_rows: rows that are tokenised at a time, sorted by length among themselves, and
            stored as one part of a feature table. "auto" is 512 on a CPU, and up to 1,024 on a
            GPU, whose larger batches would be padded more.
        memory_limit_gb: above it batches are halved and tried again, as when memory runs out;
            10⁹ bytes of the process on a CPU, of torch on a GPU.
        features: how much of each token the features keep.
        noise: how the noise probe of a validation profile is fitted; None fits none.
    """

    tokens: Literal["response", "all"] = "response"
    preconditioner: Literal["none", "activation"] = "activation"
    damping: float = 0.1
    centre: bool = False
    batch_tokens: int | Literal["auto"] = "auto"
    batch_image_mb: float = 128.0
    image_workers: int = 2
    remembered_images: int = 0
    window_rows: int | Literal["auto"] = "auto"
    memory_limit_gb: float | None = None
    features: FeaturePrecision = field(default_factory=FeaturePrecision)
    noise: NoiseOptions | None = field(default_factory=NoiseOptions)

    @property
    def read_rows(self) -> int:
        """Rows of a stored table that are read at a time."""
        return 512 if self.window_rows == "auto" else self.window_rows

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name, least in (
            ("batch_tokens", 1),
            ("window_rows", 1),
            ("image_workers", 0),
            ("remembered_images", 0),
        ):
            value = getattr(self, name)
            if value != "auto" and value < least:
                raise ValueError(f"{name} must be at least {least}; got {value}.")
        if not self.batch_image_mb > 0:
            raise ValueError(f"batch_image_mb must be positive; got {self.batch_image_mb}.")
        if self.memory_limit_gb is not None and not self.memory_limit_gb > 0:
            raise ValueError(f"memory_limit_gb must be positive; got {self.memory_limit_gb}.")


@dataclass(frozen=True)
class Refine:
    """How far rows near the selection's boundary are computed again, exactly.

    Attributes:
        max_share: at most this share of the scored rows goes through the model again.
        first_rows: rows nearest to the boundary that are computed first; the errors seen on
            them give the first band.
        safety: the band is the largest error seen so far times this.
    """

    max_share: float = 0.25
    first_rows: int = 32
    safety: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0 < self.max_share <= 1:
            raise ValueError(f"max_share must lie in (0, 1]; got {self.max_share}.")
        if self.first_rows < 1:
            raise ValueError(f"first_rows must be at least 1; got {self.first_rows}.")
        if not self.safety >= 1:
            raise ValueError(f"safety must be at least 1; got {self.safety}.")


@dataclass(frozen=True)
class Attribution:
    """Which pairs of training and validation rows are named.

    Attributes:
        top: for each row of one side, this many rows of the other that help it most, and this
            many that hurt it most.
        exact: compute, for each validation row, the pairs of twice as many candidates again with
            the model. What training rows help is told from their features in any case.
    """

    top: int = 10
    exact: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.top < 1:
            raise ValueError(f"top must be at least 1; got {self.top}.")
