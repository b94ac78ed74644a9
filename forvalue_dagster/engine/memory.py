"""Batch sizes that adapt to the available memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.valuation.sweep_shape import SweepShape, blocked

_CPU_TOKENS = 2048
# With more tokens a GPU gains nothing, and rows of a batch differ more in length.
_MOST_TOKENS = 16_384
_LEAST_TOKENS = 256
# Share of a GPU's free memory for the activations of a batch, without the head's workspace.
_ACTIVATIONS_SHARE = 0.3

_logger = logging.getLogger(__name__)


@dataclass
class TokenBudget:
    """The limits of a batch: tokens, padding included, and memory of the head's workspace.

    Both fall when memory runs out, which may change the last digits of results.

    Attributes:
        tokens: tokens of a batch.
        sweep: shape of the head's sweep, which holds the workspace.
    """

    tokens: int
    sweep: SweepShape = field(default_factory=blocked)

    @classmethod
    def of(cls, loaded: LoadedModel, options: ValuationOptions) -> TokenBudget:
        """Return the budget that a pass begins with."""
        return cls(options.batch_tokens or _fitting_tokens(loaded), loaded.unembedding.sweep)

    @property
    def mark(self) -> str:
        """The budget as text, to be stored with the results computed under it."""
        return f"{self.tokens},{self.sweep.workspace}"

    def restore(self, mark: str) -> None:
        """Continue with a stored budget."""
        self.tokens, self.sweep.workspace = map(int, mark.split(","))

    def halve_workspace(self) -> bool:
        """Set the workspace to half of what did not fit; False if it is small already."""
        if self.sweep.workspace < 2**24:
            return False
        self.sweep.workspace //= 2
        _logger.warning(
            "The logits of a batch did not fit in memory; going on with %d MB of them at a time.",
            self.sweep.workspace // 2**20,
        )
        return True

    def halve(self, failed: int) -> None:
        """Set the budget to half of a batch that did not fit."""
        self.tokens = max(1, failed // 2)
        _logger.warning(
            "A batch of %d tokens did not fit in memory; going on with %d.", failed, self.tokens
        )


def _fitting_tokens(loaded: LoadedModel) -> int:
    """Return the tokens of a batch whose activations fit in free memory; a power of two."""
    if loaded.device.type != "cuda":
        return _CPU_TOKENS
    config = loaded.model.config.get_text_config()  # type: ignore[operator, union-attr]
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * width
    # Without gradients one layer's activations are in memory at a time: some copies of the
    # residual stream, queries, keys and values, float32 in the norms; and the inside of the MLP.
    token_bytes = loaded.unembedding.weight.element_size() * (16 * width + 4 * inner)
    free, _ = torch.cuda.mem_get_info(loaded.device)
    fitting: int = int(_ACTIVATIONS_SHARE * free) // token_bytes
    return max(_LEAST_TOKENS, min(_MOST_TOKENS, 1 << max(fitting.bit_length() - 1, 0)))


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
        device: device of the model.
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
