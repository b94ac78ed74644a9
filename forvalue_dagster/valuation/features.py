"""Token features: what is stored of each token, so that no later valuation needs the model.

For every response position the last hidden state h_t, rounded, and the k entries of the
prediction error e_t that are largest in magnitude, the label's always among them. For any
validation profile, group or metric

    value(i) ≈ Σ_t Σ_{u ∈ top-k(t)} e_{t,u} (Ḡ P)_u · h_t

and equality holds as k reaches the vocabulary and the rounding vanishes (`feature_value.py`).
Features depend on the rows and the model alone, never on validation data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forvalue_dagster.options.valuation import FeaturePrecision
from forvalue_dagster.valuation.positions import ResponsePositions
from forvalue_dagster.valuation.prediction_error import PredictionErrors

# A hidden state's largest entries can be a hundred times all others. Stored apart, they do not
# widen the range of the rounded ones: with four of them apart the largest error of a preconditioned
# value fell to a quarter, and int8 keeps the order of exact values (benchmarks/feature_fidelity).
OUTLIERS = 4
_TENSORS = ("hidden", "scale", "outlier_dims", "outliers", "ids", "errors")


@dataclass(frozen=True)
class TokenFeatures:
    """Features of the response positions of some rows, concatenated.

    Attributes:
        hidden: h_t / scale [P, D]: int8 (0 at outliers), float16 or float32.
        scale: [P], float32.
        outlier_dims: dimensions of the largest entries of h_t [P, 4], int16; [P, 0] unless int8.
        outliers: those entries, float32.
        ids: tokens of the kept errors [P, k], int32, distinct in each position.
        errors: e_t at those tokens [P, k], float16 or float32.
        lengths: number of positions of each row.
    """

    hidden: Tensor
    scale: Tensor
    outlier_dims: Tensor
    outliers: Tensor
    ids: Tensor
    errors: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def concatenate(cls, parts: Sequence[TokenFeatures]) -> TokenFeatures:
        """Join the rows of several parts."""
        if len(parts) == 1:
            return parts[0]
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS}
        return cls(**joined, lengths=tuple(length for part in parts for length in part.lengths))

    def to_tensors(self) -> dict[str, Tensor]:
        """Return tensors to be stored; `from_tensors` is the inverse."""
        return self.tensors() | {"lengths": torch.tensor(self.lengths, dtype=torch.int64)}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the positions by name."""
        return {name: getattr(self, name) for name in _TENSORS}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TokenFeatures:
        """Rebuild stored features."""
        lengths = tuple(tensors["lengths"].tolist())
        return cls(**{name: tensors[name] for name in _TENSORS}, lengths=lengths)

    def to(self, device: torch.device) -> TokenFeatures:
        """Return the features on a device."""
        parts = {name: getattr(self, name).to(device) for name in _TENSORS}
        return TokenFeatures(**parts, lengths=self.lengths)

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return h_t [P, D]."""
        hidden = self.hidden.to(dtype) * self.scale.to(dtype)[:, None]
        return hidden.scatter_(1, self.outlier_dims.long(), self.outliers.to(dtype))

    def rows(self, first: int, last: int) -> TokenFeatures:
        """Return the rows of a range."""
        start = sum(self.lengths[:first])
        span = slice(start, start + sum(self.lengths[first:last]))
        parts = {name: getattr(self, name)[span] for name in _TENSORS}
        return TokenFeatures(**parts, lengths=self.lengths[first:last])

    def chunks(self, positions: int) -> Iterator[tuple[range, TokenFeatures]]:
        """Split into groups of whole rows of at most `positions`; a longer row stands alone."""
        first = 0
        while first < len(self.lengths):
            last, count = first + 1, self.lengths[first]
            while last < len(self.lengths) and count + self.lengths[last] <= positions:
                count += self.lengths[last]
                last += 1
            yield range(first, last), self.rows(first, last)
            first = last


def token_features(
    errors: PredictionErrors, positions: ResponsePositions, precision: FeaturePrecision
) -> TokenFeatures:
    """Return the features of some positions.

    Args:
        errors: prediction errors of the same positions, the `precision.top_errors` largest found.
        positions: the positions.
        precision: the precision to keep.
    """
    ids, kept = errors.top()
    return TokenFeatures(
        *_rounded(positions.states, precision.hidden),
        ids.to(torch.int32),
        kept.to(torch.float32 if precision.hidden == "float32" else torch.float16),
        positions.lengths,
    )


def _rounded(hidden: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rounded hidden states, their scale, and the place and value of their outliers."""
    count = min(OUTLIERS, hidden.shape[1]) if precision == "int8" else 0
    dims = hidden.abs().topk(count, dim=1).indices
    outliers = hidden.gather(1, dims)
    rest = hidden.scatter(1, dims, 0.0)
    if precision == "float32":
        scale = torch.ones_like(rest[:, 0])
    else:
        largest = rest.abs().amax(dim=1)
        scale = torch.where(largest > 0, largest / (127 if precision == "int8" else 1), 1.0)
    scaled = rest / scale[:, None]
    if precision == "int8":
        scaled = scaled.round_()
    dtype = {"int8": torch.int8, "float16": torch.float16, "float32": torch.float32}[precision]
    return scaled.to(dtype), scale.float(), dims.to(torch.int16), outliers.float()
