"""The activation preconditioner: value in the metric of the hidden states' second moment.

    A = mean_t h_t h_tᵀ,   P = (A + λ·tr(A)/D·I)⁻¹,   value_P(i) = Σ_t e_tᵀ (Ḡ P) h_t

The activation factor of K-FAC at the unembedding: last hidden states are dominated by a few
directions, and a plain inner product mostly compares those. With P = L Lᵀ the whole method is
the plain one on whitened states h̃ = Lᵀ h, norms and pairs included; so this module only makes L.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Preconditioner:
    """Which metric values are measured in.

    Attributes:
        kind: "none" is the paper's score, "activation" the preconditioned one.
        damping: λ, relative to the mean eigenvalue of A; unused for "none".
    """

    kind: Literal["none", "activation"] = "activation"
    damping: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.kind not in ("none", "activation"):
            raise ValueError(
                f"preconditioner {self.kind!r} is unknown; expected 'none' or 'activation'."
            )
        if not self.damping > 0:
            raise ValueError(f"damping must be positive; got {self.damping}.")

    def whitening(self, second_moment: Tensor) -> Tensor | None:
        """Return L [D, D] in float64 with P = L Lᵀ, to be used as H @ L; None for "none".

        Args:
            second_moment: A [D, D], float64.

        Raises:
            ValueError: if A is not finite or is zero.
        """
        if self.kind == "none":
            return None
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
        return inverse.T
