"""The pieces in which the P × V logits of a sweep are computed, on a CPU or an accelerator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Share of the accelerator's memory that is free when the first sweep runs.
_WORKSPACE_SHARE = 0.2
# For an accelerator that does not say how much memory is free.
_UNKNOWN_MEMORY = 2**31
# More positions at a time do not make a product faster.
_MOST_POSITIONS = 16_384


@dataclass
class SweepShape:
    """How much of the logits is computed at a time.

    Attributes:
        tile: positions and tokens of the vocabulary that are computed and summed at a time, so
            that they stay in the processor's cache; None for all logits in memory.
        workspace: bytes of logits in memory at a time. Falls when memory runs out.
    """

    tile: tuple[int, int] | None
    workspace: int

    @property
    def wide(self) -> bool:
        """Whether the whole vocabulary is swept at once."""
        return self.tile is None

    def positions(self, vocabulary: int, dtype: torch.dtype) -> int:
        """Return for how many positions all logits are in memory at a time; at least 1.

        It is 64 times a power of two where there are that many positions, so that the last
        digits of results do not depend on every byte of free memory.
        """
        count = self.workspace // (vocabulary * dtype.itemsize)
        if self.wide and count >= 64:
            count = min(64 << ((count // 64).bit_length() - 1), _MOST_POSITIONS)
        return max(1, count)

    def columns(self, positions: int, vocabulary: int, dtype: torch.dtype) -> int:
        """Return how many tokens' logits are in memory at a time for a number of positions."""
        step = 64 if self.tile is None else self.tile[1]
        fitting = self.workspace // (max(1, positions) * dtype.itemsize)
        return min(vocabulary, max(step, fitting // step * step))


def blocked() -> SweepShape:
    """Return the shape for a CPU: tiles that stay in its cache."""
    return SweepShape(tile=(512, 1024), workspace=96 * 2**20)


def wide(workspace: int) -> SweepShape:
    """Return the shape for an accelerator: few operations, each over the whole vocabulary."""
    return SweepShape(tile=None, workspace=workspace)


def shape_for(weight: Tensor) -> SweepShape:
    """Return the shape for the device that an unembedding's weight lies on."""
    if weight.device.type == "cpu":
        return blocked()
    if weight.device.type != "cuda":
        return wide(_UNKNOWN_MEMORY)
    free, _ = torch.cuda.mem_get_info(weight.device)
    reusable = torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(
        weight.device
    )
    # A power of two, so that a pass continued in another process gets the same.
    return wide(1 << (int(_WORKSPACE_SHARE * (free + reusable)).bit_length() - 1))
