"""Batches that adapt to the memory there is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

_logger = logging.getLogger(__name__)


@dataclass
class TokenBudget:
    """How many tokens a batch may have, padding included; falls when memory runs out.

    Attributes:
        tokens: the budget in force.
    """

    tokens: int

    def halve(self, failed: int) -> None:
        """Set the budget to half of a batch that did not fit."""
        self.tokens = max(1, failed // 2)
        _logger.warning(
            "A batch of %d tokens did not fit in memory; going on with %d.", failed, self.tokens
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # On the CPU torch reports it as a plain RuntimeError of its allocator.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@contextmanager
def memory_limit(gigabytes: float | None, device: torch.device) -> Iterator[None]:
    """Make allocations beyond a limit fail, as if the machine had no more.

    Args:
        gigabytes: 10⁹ bytes; of the process's private memory on the CPU (Linux), of torch's on a
            GPU. None sets no limit.
        device: where the model runs.
    """
    if gigabytes is None:
        yield
        return
    limit = int(gigabytes * 1e9)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0), device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def release_cached_memory(device: torch.device) -> None:
    """Give memory that torch has cached for later back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
