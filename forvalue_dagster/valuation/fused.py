"""The sums of a sweep in one reading of the logits, on a GPU.

Separate operations read and write the P × V logits about nine times, which takes longer than the
product that made them. The plain operations in `prediction_error.py` compute the same, and run on
every other device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _sums_kernel(  # type: ignore[no-untyped-def]
    logits,
    stride,
    own,
    start_maximum,
    maximum,
    total,
    weighted,
    rank,
    groups,
    group_count,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    LOWEST: tl.constexpr,
):
    """Sum one position's logits; one program for each position."""
    row = tl.program_id(0).to(tl.int64)
    reference = tl.load(own + row)
    highest = tl.load(start_maximum + row)
    sums = 0.0
    moments = 0.0
    above = 0.0
    for start in range(0, COLUMNS, BLOCK):
        place = start + tl.arange(0, BLOCK)
        z = tl.load(logits + row * stride + place, mask=place < COLUMNS, other=LOWEST)
        grouped = tl.max(tl.reshape(z, (BLOCK // GROUP, GROUP)), axis=1)
        number = start // GROUP + tl.arange(0, BLOCK // GROUP)
        tl.store(groups + row * group_count + number, grouped, mask=number < group_count)
        raised = tl.maximum(highest, tl.max(grouped, axis=0))
        decay = tl.exp(highest - raised)
        powers = tl.exp(z - raised)
        sums = sums * decay + tl.sum(powers, axis=0)
        moments = moments * decay + tl.sum(powers * z, axis=0)
        above += tl.sum((z > reference).to(tl.float32), axis=0)
        highest = raised
    tl.store(maximum + row, highest)
    tl.store(total + row, sums)
    tl.store(weighted + row, moments)
    tl.store(rank + row, above)


def sums(
    z: Tensor, own: Tensor, maximum: Tensor, group: int, lowest: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum a tile of logits.

    Args:
        z: logits [n, C], float32, neighbouring entries of a row side by side.
        own: the labels' logits [n].
        maximum: largest logit of earlier tiles [n].
        group: size of a group of neighbouring tokens, a power of two.
        lowest: value of the places without a token.

    Returns:
        (maximum, Σ exp(z − maximum), Σ exp(z − maximum) z, number of entries above `own`, all
        [n]; the largest entry of each group [n, ⌈C / group⌉]).
    """
    rows, columns = z.shape
    count = -(-columns // group)
    raised, total, weighted, rank = (torch.empty_like(own) for _ in range(4))
    groups = z.new_empty(rows, count)
    _sums_kernel[(rows,)](
        z,
        z.stride(0),
        own,
        maximum,
        raised,
        total,
        weighted,
        rank,
        groups,
        count,
        COLUMNS=columns,
        BLOCK=_BLOCK,
        GROUP=group,
        LOWEST=lowest,
        num_warps=8,
    )
    return raised, total, weighted, rank, groups


@triton.jit
def _weigh_kernel(  # type: ignore[no-untyped-def]
    logits,
    stride,
    maximum,
    against,
    against_stride,
    place,
    high,
    low,
    found,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Weigh one position's products by its exponentials; one program for each position."""
    row = tl.program_id(0).to(tl.int64)
    highest = tl.load(maximum + row)
    to = tl.load(place + row) * COLUMNS
    sums = 0.0
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < COLUMNS
        z = tl.load(logits + row * stride + column, mask=inside, other=float("-inf"))
        weight = tl.load(against + row * against_stride + column, mask=inside, other=0.0)
        power = tl.exp(z - highest)
        sums += tl.sum(power * weight, axis=0)
        if KEEP:
            rounded = power.to(tl.bfloat16)
            rest = (power - rounded.to(tl.float32)).to(tl.bfloat16)
            tl.store(high + to + column, rounded, mask=inside)
            tl.store(low + to + column, rest, mask=inside)
    tl.store(found + row, sums)


def weigh(
    z: Tensor,
    maximum: Tensor,
    against: Tensor,
    place: Tensor,
    parts: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Return Σ exp(z − maximum) · against of each position [n].

    Args:
        z: logits [n, C], float32.
        maximum: [n].
        against: [n, C], float32.
        place: index in `parts` of each position's exponentials [n], int64.
        parts: buffer for the exponentials in two bfloat16 parts, C entries for each place; None
            where they are not needed.
    """
    rows, columns = z.shape
    found = torch.empty_like(maximum)
    high, low = (found, found) if parts is None else parts
    _weigh_kernel[(rows,)](
        z,
        z.stride(0),
        maximum,
        against,
        against.stride(0),
        place,
        high,
        low,
        found,
        COLUMNS=columns,
        BLOCK=_BLOCK,
        KEEP=parts is not None,
        num_warps=8,
    )
    return found
