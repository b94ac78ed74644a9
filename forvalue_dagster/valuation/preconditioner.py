"""The metric that hidden states are compared in: centred or not, whitened or not.

    A = mean_t h_t h_tᵀ,   P = (A + λ·tr(A)/D·I)⁻¹,   value_P(i) = Σ_t e_tᵀ (Ḡ P) h_t

The activation factor of K-FAC at the unembedding: last hidden states are dominated by a few
directions, and a plain inner product mostly compares those. With P = L Lᵀ the whole method is
the plain one on states h̃ = Lᵀ (h − μ), norms and pairs included; so this module only makes μ and
L. Without centring μ = 0; with it A is the covariance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """The linear map applied to hidden states before they are compared.

    Attributes:
        mean: μ [D], or None.
        whitening: L [D, D], or None.
    """

    mean: Tensor | None = None
    whitening: Tensor | None = None

    def apply(self, hidden: Tensor) -> Tensor:
        """Return h̃ = Lᵀ (h − μ) for hidden states [P, D]; both sides of the same dtype."""
        if self.mean is not None:
            hidden = hidden - self.mean
        return hidden if self.whitening is None else hidden @ self.whitening

    def to(self, like: Tensor) -> Metric:
        """Return the metric in the dtype and on the device of a tensor."""
        return Metric(
            None if self.mean is None else self.mean.to(like),
            None if self.whitening is None else self.whitening.to(like),
        )


@dataclass(frozen=True)
class Preconditioner:
    """The choice of the metric for values.

    Attributes:
        kind: "none" is the paper's score, "activation" the preconditioned one.
        damping: λ, relative to the mean eigenvalue of A; unused for "none".
        centre: subtract the validation tokens' mean hidden state.
    """

    kind: Literal["none", "activation"] = "activation"
    damping: float = 0.1
    centre: bool = False

    def __post_init__(self) -> None:
        """Check the kind and the damping."""
        if self.kind not in ("none", "activation"):
            raise ValueError(
                f"preconditioner {self.kind!r} is unknown; expected 'none' or 'activation'."
            )
        if not self.damping > 0:
            raise ValueError(f"damping must be positive; got {self.damping}.")

    def metric(self, hidden_mean: Tensor, second_moment: Tensor) -> Metric:
        """Return μ and L in float64, with P = L Lᵀ.

        Args:
            hidden_mean: mean of h over the validation rows' response tokens [D], float64.
            second_moment: A, mean of h hᵀ over the same [D, D], float64.

        Raises:
            ValueError: if A is not finite or is zero.
        """
        mean = hidden_mean if self.centre else None
        if self.kind == "none":
            return Metric(mean)
        if mean is not None:
            second_moment = second_moment - torch.outer(mean, mean)
        mean_eigenvalue = second_moment.diagonal().mean()
        if not (torch.isfinite(second_moment).all() and mean_eigenvalue > 0):
            raise ValueError(
                "The second moment of the validation rows' hidden states is zero or not finite; "
                "no preconditioner follows from it."
            )
        identity = torch.eye(
            len(second_moment), dtype=second_moment.dtype, device=second_moment.device
        )
        damped = second_moment + self.damping * mean_eigenvalue * identity
        factor = torch.linalg.cholesky(damped)  # damped = C Cᵀ, so P = C⁻ᵀ C⁻¹ and L = C⁻ᵀ
        inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
        return Metric(mean, inverse.T)
