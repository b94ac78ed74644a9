"""Matrix products with the rounding of float32, whatever the dtype of their factors.

A product of two bfloat16 or float16 numbers is exact in float32. So half-precision factors need
no cast: accumulated and returned in float32 their product is as exact as that of upcast factors,
and on a GPU some ten times as fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)


def score_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute scores in for hidden states of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def takes_half(left: Tensor, right: Tensor) -> bool:
    """Tell whether `product` can multiply two half-precision tensors without a cast."""
    return left.is_cuda and left.dtype == right.dtype and left.dtype in _HALF


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Return left @ rightᵀ in float32 (float64 where `left` is).

    Args:
        left: [N, K].
        right: [M, K].
        out: tensor [N, M] for the result.
    """
    if takes_half(left, right):
        result = torch.mm(left, right.T, out_dtype=torch.float32)
        return result if out is None else out.copy_(result)
    dtype = score_dtype(left.dtype)
    return torch.mm(left.to(dtype), right.to(dtype).T, out=out)


def batched_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ rightᵀ of each pair of matrices [R, N, K], [R, M, K], as `product` does."""
    if takes_half(left, right):
        return torch.bmm(left, right.transpose(1, 2), out_dtype=torch.float32)
    dtype = score_dtype(left.dtype)
    return torch.bmm(left.to(dtype), right.to(dtype).transpose(1, 2))


def split_bfloat16(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return a float32 tensor as the sum of two bfloat16 ones, up to 2⁻¹⁶ of each entry."""
    high = factor.bfloat16()
    return high, (factor - high).bfloat16()


def self_products(high: Tensor, low: Tensor) -> Tensor:
    """Return X @ Xᵀ of each matrix X = high + low [R, N, K], the square of `low` left out."""
    crossed = batched_product(high, low)
    return batched_product(high, high).add_(crossed).add_(crossed.transpose(1, 2))


@dataclass(frozen=True)
class SplitFactor:
    """A float32 factor of products on a GPU, stored as two half-precision parts.

        x · scale = high + low,   |error| ≤ 2⁻²² of the largest entry

    with both parts in float16 and a power of two as scale, which brings the largest entry near
    one. The product of two such factors is three half-precision products, joined along K:
    high·high + high·low + low·high.

    Attributes:
        parts: [N, 3 K], float16.
        scale: one scale for each row [N, 1] in a left factor, one for all [1, 1] in a right
            factor; float32.
    """

    parts: Tensor
    scale: Tensor

    @classmethod
    def left(cls, factor: Tensor) -> SplitFactor:
        """Split the left factor [N, K]; a row that is not finite does not affect the others."""
        high, low, scale = _split(factor, factor.abs().amax(dim=1, keepdim=True))
        return cls(torch.cat([high, high, low], dim=1), scale)

    @classmethod
    def right(cls, factor: Tensor) -> SplitFactor:
        """Split the right factor [M, K]."""
        high, low, scale = _split(factor, factor.abs().amax()[None, None])
        return cls(torch.cat([high, low, high], dim=1), scale)

    def times(self, right: SplitFactor) -> tuple[Tensor, Tensor]:
        """Return (left @ rightᵀ times a factor of each row [N, M], that factor [N, 1]), float32."""
        raw = torch.mm(self.parts, right.parts.T, out_dtype=torch.float32)
        return raw, self.scale * right.scale


def _split(factor: Tensor, largest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = torch.exp2(-torch.ceil(torch.log2(largest.clamp(min=1e-30))))
    scaled = factor * scale
    high = scaled.half()
    return high, (scaled - high).half(), scale
