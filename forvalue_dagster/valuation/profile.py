"""The validation profile: what is stored of the trusted rows, and the direction of values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.features import TokenFeatures
from forvalue_dagster.valuation.noise import NoiseProbe
from forvalue_dagster.valuation.preconditioner import Metric, Preconditioner
from forvalue_dagster.valuation.products import SplitFactor
from forvalue_dagster.valuation.prompt_space import PromptSpace

_PARTS = ("noise", "prompts")
_TENSORS = ("gradients", "errors", "hidden_mean", "hidden_second_moment", "rows")


@dataclass(frozen=True)
class ValueDirection:
    """Ḡ of every group, in the metric of the preconditioner.

    Attributes:
        groups: names, in the order of `gradients`.
        weights: share of the validation rows in each group [G], float64; sums to 1.
        gradients: Ḡ_g in the metric [G, V, D].
        metric: metric of the preconditioner, in the same dtype.
        norm: ‖Ḡ‖ of the mean over all validation rows.
    """

    groups: tuple[str, ...]
    weights: Tensor
    gradients: Tensor
    metric: Metric
    norm: float

    def split(self, group: int) -> SplitFactor:
        """Return Ḡ of a group as the right factor of half-precision products."""
        if group not in self._splits:
            self._splits[group] = SplitFactor.right(self.gradients[group])
        return self._splits[group]

    _splits: dict[int, SplitFactor] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class ValidationProfile:
    """A summary of the trusted rows that values can be computed from.

    Attributes:
        groups: names of the validation groups.
        counts: validation rows in each group.
        gradients: Ḡ_g = mean over the group's rows of G_v [G, V, D], float32 (float64 if the
            model is).
        errors: mean over the group's rows of Σ_t e_t [G, V], same dtype; needed for centring.
        hidden_mean: mean of h over all response tokens [D], float64.
        hidden_second_moment: A = mean of h hᵀ over the same [D, D], float64.
        rows: validation row that each of the M entries below belongs to [M], int64.
        statistics: forward statistics of those rows, name → [M] float64.
        features: token features of those rows, for pairs; None if they were not kept.
        fingerprint: fingerprint of the model and the options that made it, as the engine writes it.
        noise: the noise probe fitted on those rows; None if none was fitted.
        prompts: the prompt space of those rows; None if they are too few or all alike.
    """

    groups: tuple[str, ...]
    counts: tuple[int, ...]
    gradients: Tensor
    errors: Tensor
    hidden_mean: Tensor
    hidden_second_moment: Tensor
    rows: Tensor
    statistics: dict[str, Tensor]
    features: TokenFeatures | None = None
    fingerprint: str = ""
    noise: NoiseProbe | None = None
    prompts: PromptSpace | None = None

    @property
    def identity(self) -> str:
        """A short name that two profiles share only if they give rows the same scores."""
        digest = sha256(f"{self.fingerprint}{self.groups}{self.counts}".encode())
        digest.update(
            self.gradients[:, :: max(1, self.gradients.shape[1] // 64)].cpu().numpy().tobytes()
        )
        for part in (self.noise, self.prompts):
            for array in part.to_arrays().values() if part is not None else ():
                digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def direction(
        self, preconditioner: Preconditioner, *, overwrite: bool = False
    ) -> ValueDirection:
        """Return the direction of values.

        Args:
            preconditioner: the metric.
            overwrite: write over the profile's gradients, which cannot be used afterwards; with
                many groups this halves the memory.
        """
        metric = preconditioner.metric(self.hidden_mean, self.hidden_second_moment)
        metric = metric.to(self.gradients)
        gradients = self.gradients
        if metric.mean is not None or metric.whitening is not None:
            gradients = gradients if overwrite else torch.empty_like(gradients)
            for own, target, errors in zip(self.gradients, gradients, self.errors, strict=True):
                if metric.mean is not None:  # Σ e (h − μ)ᵀ = Σ e hᵀ − (Σ e) μᵀ
                    own = own - errors[:, None] * metric.mean
                target.copy_(own if metric.whitening is None else own @ metric.whitening)
        counts = torch.tensor(self.counts, dtype=torch.float64, device=gradients.device)
        weights = counts / counts.sum()
        mean = sum(
            weight * gradient for weight, gradient in zip(weights.tolist(), gradients, strict=True)
        )
        assert isinstance(mean, Tensor)  # at least one group
        norm = float(torch.linalg.vector_norm(mean, dtype=torch.float64))
        if not norm > 0:
            raise ValueError(f"The validation rows' mean gradient has norm {norm}; no direction.")
        return ValueDirection(self.groups, weights, gradients, metric, norm)

    def to(self, device: torch.device) -> ValidationProfile:
        """Return the profile with the tensors for scoring on a device."""
        return replace(
            self,
            gradients=self.gradients.to(device),
            errors=self.errors.to(device),
            hidden_mean=self.hidden_mean.to(device),
            hidden_second_moment=self.hidden_second_moment.to(device),
        )

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (tensors, plain metadata) to be stored; `from_tensors` is the inverse."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors |= {f"statistics.{name}": values for name, values in self.statistics.items()}
        if self.features is not None:
            tensors |= {f"features.{k}": v for k, v in self.features.to_tensors().items()}
        for name in _PARTS:
            part: NoiseProbe | PromptSpace | None = getattr(self, name)
            arrays = {} if part is None else part.to_arrays()
            tensors |= {f"{name}.{k}": torch.from_numpy(v) for k, v in arrays.items()}
        return tensors, {
            "noise": self.noise and {"recipes": self.noise.recipes, "metric": self.noise.metric},
            "identity": self.identity,
            "groups": list(self.groups),
            "counts": list(self.counts),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
    ) -> ValidationProfile:
        """Rebuild a stored profile."""
        features = _part(tensors, "features.")
        return cls(
            groups=tuple(str(name) for name in metadata["groups"]),
            counts=tuple(int(count) for count in metadata["counts"]),
            statistics={name: tensors[f"statistics.{name}"] for name in FORWARD_STATISTICS},
            features=TokenFeatures.from_tensors(features) if features else None,
            fingerprint=str(metadata["fingerprint"]),
            noise=stored_probe(tensors, metadata),
            prompts=stored_prompts(tensors),
            **{name: tensors[name] for name in _TENSORS},
        )


def stored_probe(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> NoiseProbe | None:
    """Return only the noise probe of a stored profile."""
    described = metadata.get("noise")
    if described is None:
        return None
    arrays = {name: tensor.numpy() for name, tensor in _part(tensors, "noise.").items()}
    return NoiseProbe.from_arrays(arrays, described["recipes"], described["metric"])


def stored_prompts(tensors: Mapping[str, Tensor]) -> PromptSpace | None:
    """Return only the prompt space of a stored profile."""
    arrays = {name: tensor.numpy() for name, tensor in _part(tensors, "prompts.").items()}
    return PromptSpace.from_arrays(arrays) if arrays else None


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
