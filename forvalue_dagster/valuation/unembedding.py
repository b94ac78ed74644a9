"""The unembedding: from the last hidden state to the model's logits, exactly.

Symbols used throughout `valuation/`: B rows in a batch, T positions, P response positions of a
batch, V the head's vocabulary, D the width of the head's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from forvalue_dagster.valuation.products import product, score_dtype
from forvalue_dagster.valuation.sweep_shape import SweepShape, shape_for


class UnknownUnembeddingError(ValueError):
    """The model's logits are not a known function of its unembedding; scoring it would be wrong."""


class PostHeadTransform(Protocol):
    """What a model does to `W h + b` before the softmax: an elementwise f and its derivative."""

    def apply(self, raw: Tensor) -> Tensor:
        """Return the final logits z = f(raw)."""
        ...

    def slope(self, logits: Tensor) -> Tensor | None:
        """Return f′ where f equals `logits`, or broadcast to them; None where f is the identity."""
        ...


@dataclass(frozen=True)
class Identity:
    """f(x) = x, as in most families."""

    def apply(self, raw: Tensor) -> Tensor:
        """Return `raw` itself."""
        return raw

    def slope(self, logits: Tensor) -> None:
        """Return None: f′ = 1."""
        return


@dataclass(frozen=True)
class SoftCap:
    """f(x) = c·tanh(x / c), as in Gemma 2."""

    cap: float

    def apply(self, raw: Tensor) -> Tensor:
        """Return c·tanh(raw / c)."""
        return torch.tanh(raw / self.cap) * self.cap

    def slope(self, logits: Tensor) -> Tensor:
        """Return f′ = 1 − (z / c)²."""
        return 1 - (logits / self.cap).square()


@dataclass(frozen=True)
class Scale:
    """f(x) = s·x, as in Cohere (`logit_scale`) or Granite (1 / `logits_scaling`)."""

    factor: float

    def apply(self, raw: Tensor) -> Tensor:
        """Return s·raw."""
        return raw * self.factor

    def slope(self, logits: Tensor) -> Tensor:
        """Return f′ = s, once for all logits."""
        return torch.full(
            (1, 1)[: logits.dim()], self.factor, dtype=logits.dtype, device=logits.device
        )


# The names that transformers' configurations use for a transform after the head. A name can mean
# different things (HyperCLOVA X multiplies by what Granite divides by, MiniCPM3 scales before the
# head), so these are candidates, and the model's own logits decide. For a new family, add an entry
# here or a class above.
POST_HEAD_SETTINGS: Sequence[tuple[str, Callable[[float], PostHeadTransform]]] = (
    ("final_logit_softcapping", SoftCap),  # Gemma 2 and later
    ("logits_soft_cap", SoftCap),  # RecurrentGemma
    ("logit_scale", Scale),  # Cohere
    ("logits_scaling", lambda divisor: Scale(1 / divisor)),  # Granite
    ("logits_scaling", Scale),  # HyperCLOVA X
    ("lm_head_multiplier", Scale),  # Falcon-H1
)


def candidate_transforms(config: object) -> list[PostHeadTransform]:
    """Return the transforms that a model's (text) configuration may mean, the identity first."""
    settings = ((make, getattr(config, name, None)) for name, make in POST_HEAD_SETTINGS)
    named = [make(float(value)) for make, value in settings if isinstance(value, int | float)]
    return [Identity(), *named]


@dataclass(frozen=True)
class Unembedding:
    """z = f(W h + b).

    Attributes:
        weight: W [V, D], in the model's dtype and on its device.
        bias: b [V], or None.
        transform: f with its derivative.
        shape: way to cut the P × V logits; by default the one that suits the device.
    """

    weight: Tensor
    bias: Tensor | None = None
    transform: PostHeadTransform = field(default_factory=Identity)
    shape: SweepShape | None = None

    @cached_property
    def sweep(self) -> SweepShape:
        """The shape in use."""
        return self.shape or shape_for(self.weight)

    @property
    def vocabulary_size(self) -> int:
        """V, the head's own (an embedding table may be larger)."""
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        """D."""
        return self.weight.shape[1]

    def logits(self, hidden: Tensor, vocabulary: slice, out: Tensor | None = None) -> Tensor:
        """Return the final logits of one block of the vocabulary, float32 or float64.

        Args:
            hidden: last hidden states [P, D].
            vocabulary: the block, a slice of [0, V).
            out: tensor for the result.

        Returns:
            [P, width of the block].
        """
        raw = product(hidden, self.weight[vocabulary], out)
        if self.bias is not None:
            raw += self.bias[vocabulary].to(raw.dtype)
        final = self.transform.apply(raw)
        return final if out is None or final is raw else out.copy_(final)

    def label_logits(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return the final logit of one token for each position [P].

        Args:
            hidden: last hidden states [P, D].
            labels: the tokens [P].
        """
        dtype = score_dtype(hidden.dtype)
        raw = torch.linalg.vecdot(self.weight[labels].to(dtype), hidden.to(dtype))
        if self.bias is not None:
            raw = raw + self.bias[labels].to(dtype)
        return self.transform.apply(raw)


def output_head(model: nn.Module) -> nn.Linear:
    """Return the model's unembedding layer.

    Raises:
        UnknownUnembeddingError: if there is none, or it is not an `nn.Linear`.
    """
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    # Exactly nn.Linear: a subclass (quantised, adapted) may compute something else.
    if type(head) is not nn.Linear:
        raise UnknownUnembeddingError(
            f"{type(model).__name__}.get_output_embeddings() gave {type(head).__name__}; expected "
            "a torch.nn.Linear. Merge adapters and leave the head unquantised."
        )
    return head


@contextmanager
def capture_last_hidden(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the input of the unembedding during forward passes, and skip the head's work.

    The head gets one position instead of B × T, so no [B, T, V] logits are computed. Yields a list
    to which each forward pass appends its last hidden states [B, T, D], in the model's dtype.
    """
    captured: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        captured.append(args[0])
        # One row's: a slice of all rows is not contiguous, and its product a hundred times slower.
        return (args[0][:1, :1], *args[1:])

    handle = output_head(model).register_forward_pre_hook(keep)
    try:
        yield captured
    finally:
        handle.remove()


@torch.inference_mode()
def verified_unembedding(model: nn.Module, inputs: Mapping[str, Tensor]) -> Unembedding:
    """Return the unembedding that reproduces the model's own logits, or raise.

    The model runs twice on one short row: as it is, and with the head's input amplified so that
    the logits span ±60. There a soft cap, a clamp or any unknown transform shows; the small
    logits of a new model would hide it.

    Args:
        model: a transformers model with `get_output_embeddings()` and `config`, in evaluation
            mode, adapters merged.
        inputs: keyword arguments of one forward pass, one row.

    Raises:
        UnknownUnembeddingError: if the head is not a plain linear layer, or no candidate gives
            the model's logits up to rounding.
    """
    head = output_head(model)
    plain = Unembedding(head.weight.detach(), None if head.bias is None else head.bias.detach())
    natural = _forward_with_amplified_head(model, inputs, 1.0)
    largest = plain.logits(natural[0], slice(None)).abs().max().clamp(min=1e-6)
    observed = [natural, _forward_with_amplified_head(model, inputs, float(60 / largest))]

    get_text_config = getattr(model.config, "get_text_config", None)
    config = get_text_config() if callable(get_text_config) else model.config
    candidates = [replace(plain, transform=f) for f in candidate_transforms(config)]
    errors = [max(_relative_error(one, *pair) for pair in observed) for one in candidates]
    error, best = min(zip(errors, candidates, strict=True), key=lambda pair: pair[0])
    dtype = head.weight.dtype
    # A float32 logit is a sum of D products; in half precision the rounding of the result and
    # of the transform dominates.
    tolerance = (32 if dtype.itemsize >= 4 else 4) * torch.finfo(dtype).eps
    if not error <= tolerance:
        raise UnknownUnembeddingError(
            f"The logits of {type(model).__name__} differ from f(W h + b) by {error:.2g} of their "
            f"range; expected at most {tolerance:.2g} with f one of "
            f"{', '.join(str(one.transform) for one in candidates)}. What this family does after "
            "its head is not known: add it to POST_HEAD_SETTINGS."
        )
    return best


def _relative_error(unembedding: Unembedding, hidden: Tensor, logits: Tensor) -> float:
    """Return the largest deviation from the model's logits, relative to their range."""
    expected = unembedding.logits(hidden, slice(None))
    if logits.shape != expected.shape:
        raise UnknownUnembeddingError(
            f"The model returned logits {tuple(logits.shape)}; expected {tuple(expected.shape)} "
            f"from its head of {unembedding.vocabulary_size} tokens."
        )
    scale = logits.abs().max().clamp(min=1e-6)
    error = (logits.to(expected.dtype) - expected).abs().max() / scale
    return float(error) if torch.isfinite(error) else torch.inf


def _forward_with_amplified_head(
    model: nn.Module, inputs: Mapping[str, Tensor], amplitude: float
) -> tuple[Tensor, Tensor]:
    """Return (last hidden states × amplitude [T, D] in the scores' dtype, the model's logits)."""
    seen: list[Tensor] = []

    def amplify(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0] * amplitude)
        return (seen[-1], *args[1:])

    handle = output_head(model).register_forward_pre_hook(amplify)
    try:
        logits: Tensor = model(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    hidden = seen[-1].flatten(0, -2)
    return hidden.to(score_dtype(hidden.dtype)), logits.flatten(0, -2)
