"""Values and pairs from token features: no model, no product over the vocabulary.

A row's gradient is stored sparsely, as Σ_t e_{t,u} h̃_t for each token u that any of its
positions keeps. A value is the inner product of these vectors with those of Ḡ, a norm comes from
their squared lengths, and a pair from the tokens that two rows have in common.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from forvalue_dagster.valuation.features import TokenFeatures
from forvalue_dagster.valuation.preconditioner import Metric
from forvalue_dagster.valuation.profile import ValueDirection
from forvalue_dagster.valuation.value import RowValues

# Positions whose sparse gradients are laid out at a time.
CHUNK_POSITIONS = 4096
# Vectors of sparse gradients that are compared at a time: they stay in the processor's cache.
_LINES = 1024


@torch.inference_mode()
def feature_values(features: TokenFeatures, direction: ValueDirection) -> RowValues:
    """Value rows by their features; no model, no vocabulary-wide product.

    Args:
        features: token features of R rows.
        direction: result of `ValidationProfile.direction`, on the same device.
    """
    inner, squared_norms = [], []
    for rows, chunk in features.chunks(CHUNK_POSITIONS):
        sparse = _sparse_gradients(chunk, direction.metric, direction.gradients.dtype)
        against = torch.zeros(len(rows), len(direction.groups), dtype=torch.float64)
        squared = torch.zeros(len(rows), dtype=torch.float64)
        for tokens, owners, gradient in sparse:
            owners = owners.cpu()
            lengths = torch.linalg.vecdot(gradient, gradient)
            squared.index_add_(0, owners, lengths.to("cpu", torch.float64))
            products = torch.stack(
                [torch.linalg.vecdot(gradient, group[tokens]) for group in direction.gradients], 1
            )
            against.index_add_(0, owners, products.to("cpu", torch.float64))
        inner.append(against)
        squared_norms.append(squared)
    return RowValues.measure(direction, torch.cat(inner), torch.cat(squared_norms))


@torch.inference_mode()
def feature_pairs(
    training: TokenFeatures,
    validation: TokenFeatures,
    metric: Metric,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return ⟨G_i, G_v⟩ in the metric for all pairs [N, M], float64 on the CPU.

    Two rows' gradients overlap only in tokens that both keep, which are few. So both sides are
    joined token by token. Chunks of both sides are in memory, never all of one side.

    Args:
        training: token features of N rows.
        validation: token features of M rows.
        metric: metric of the preconditioner, in `dtype`.
        dtype: float32 or float64.
    """
    pairs = torch.zeros(len(training.lengths), len(validation.lengths), dtype=torch.float64)
    for columns, against in validation.chunks(2 * CHUNK_POSITIONS):
        right = _by_token(against, metric, dtype)
        for rows, chunk in training.chunks(2 * CHUNK_POSITIONS):
            block = torch.zeros(len(rows), len(columns), dtype=dtype)
            for token, (owners, gradient) in _by_token(chunk, metric, dtype).items():
                if token in right:
                    others, other_gradient = right[token]
                    block[owners[:, None], others] += (gradient @ other_gradient.T).cpu()
            pairs[rows.start : rows.stop, columns.start : columns.stop] = block.double()
    return pairs


def _by_token(
    features: TokenFeatures, metric: Metric, dtype: torch.dtype
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return token → (rows that keep it, their gradients at that token)."""
    tokens, owners, lines = (
        torch.cat(parts) for parts in zip(*_sparse_gradients(features, metric, dtype), strict=True)
    )
    distinct, counts = torch.unique_consecutive(tokens, return_counts=True)
    bounds = counts.cumsum(0)[:-1].cpu()
    split = zip(owners.cpu().tensor_split(bounds), lines.tensor_split(bounds), strict=True)
    return dict(zip(distinct.tolist(), split, strict=True))


def _sparse_gradients(
    features: TokenFeatures, metric: Metric, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the rows' gradients as (token [B], row [B], G_row[token] [B, D]), sorted by token.

    Each entry is Σ_t e_{t,u} h̃_t over the positions t of one row that keep token u.
    """
    hidden = metric.apply(features.dequantised(dtype))
    device = hidden.device
    rows = len(features.lengths)
    owner = torch.arange(rows, device=device).repeat_interleave(
        torch.tensor(features.lengths, device=device)
    )
    # By token first: neighbouring entries then read the same part of Ḡ.
    key, order = (features.ids.long() * rows + owner[:, None]).flatten().sort(stable=True)
    lines, counts = torch.unique_consecutive(key, return_counts=True)
    position = order // features.ids.shape[1]
    weight = features.errors.flatten()[order].to(hidden.dtype)
    ends = counts.cumsum(0)
    bounds = [0, *ends[_LINES - 1 :: _LINES].tolist()]
    if bounds[-1] != len(key):
        bounds.append(len(key))
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        block = slice(number * _LINES, (number + 1) * _LINES)
        gradient = torch.nn.functional.embedding_bag(
            position[start:stop],
            hidden,
            ends[block] - counts[block] - start,
            mode="sum",
            per_sample_weights=weight[start:stop],
        )
        yield lines[block] // rows, lines[block] % rows, gradient
