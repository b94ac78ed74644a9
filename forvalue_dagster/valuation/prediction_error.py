"""Prediction errors at the response positions of some rows, and sums over them.

    e_t = f′(z_t) ⊙ (onehot(y_t) − softmax(z_t))      with z_t = f(W h_t + b)

The gradient of a row's summed response log-likelihood at the unembedding is
G_i = Σ_t e_t h_tᵀ (For-Value, arXiv 2508.10180, Theorem 1). All values follow from these errors,
and neither a [B, T, V] tensor nor a whole V×D matrix per row is ever in memory.

One sweep over the vocabulary gives the softmax's normaliser, the statistics of each token, its
largest errors, and its products along a direction. Sums are kept relative to the largest logit
seen so far and without the label, whose error 1 − p is then the sum of the other tokens'
probabilities: no digits are lost where a prediction is nearly certain. `SweepShape` says how much
is computed at a time; the arithmetic is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from forvalue_dagster.valuation.positions import ResponsePositions
from forvalue_dagster.valuation.products import takes_half
from forvalue_dagster.valuation.unembedding import Unembedding

try:
    # Needs Triton, which comes with torch for GPUs.
    from forvalue_dagster.valuation import fused as fused
except ImportError:
    fused = None  # type: ignore[assignment]

# The k largest of a row lie within the k groups of this many tokens whose largest are largest.
GROUP = 64


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of each scored token from one forward pass, float32 or float64 [P].

    Attributes:
        nll: −log p(y_t), nats.
        entropy: entropy of p_t, nats.
        rank: number of tokens that the model finds more likely than y_t.
    """

    nll: Tensor
    entropy: Tensor
    rank: Tensor

    @classmethod
    def concatenate(cls, parts: Sequence[TokenStatistics]) -> TokenStatistics:
        """Join the statistics of several chunks."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            nll=torch.cat([part.nll for part in parts]),
            entropy=torch.cat([part.entropy for part in parts]),
            rank=torch.cat([part.rank for part in parts]),
        )


class TileVisitor(Protocol):
    """A further sum over the vocabulary, computed during a sweep, tile by tile."""

    def add(self, tile: Tile) -> None:
        """Add a tile."""
        ...


@dataclass(frozen=True)
class Tile:
    """Some positions' predictions of some tokens.

    Attributes:
        rows: the rows, whole.
        span: their positions.
        block: the tokens, a slice of [0, V).
        logits: z [n, width of the block]; at the label so low that the exponential is 0.
        maximum: the largest logit so far [n].
        decay: factor that makes sums over earlier tiles relative to `maximum` [n].
        slope: f′, broadcast to the tile; None where f is the identity.
    """

    rows: range
    span: slice
    block: slice
    logits: Tensor
    maximum: Tensor
    decay: Tensor
    slope: Tensor | None
    exponentials: Tensor | None = None

    @cached_property
    def probabilities(self) -> Tensor:
        """exp(z − maximum), 0 at the label [n, width of the block]."""
        if self.exponentials is not None:
            return self.exponentials
        return torch.sub(self.logits, self.maximum[:, None]).exp_()


class PredictionErrors:
    """The errors of some positions, after one sweep over the vocabulary.

    Attributes:
        tokens: statistics of every position.
        label_error: e at the label [P].
        log_normaliser: log Σ exp z [P].
        total: Σ exp(z − the largest logit) [P].

    Args:
        unembedding: W, b and f.
        positions: P response positions.
        top: k, the number of largest errors of each position to be found, the label's among them.
        keep: whether logits are held for `blocks`, where they fit; else it computes them again.
        visitor: an object that receives every tile; see `TileVisitor`.
    """

    def __init__(
        self,
        unembedding: Unembedding,
        positions: ResponsePositions,
        *,
        top: int = 0,
        keep: bool = False,
        visitor: TileVisitor | None = None,
    ) -> None:
        self._unembedding = unembedding
        self._positions = positions
        self._visitor = visitor
        # In the dtype that the device multiplies: cast once, not for each vocabulary block.
        half = takes_half(positions.hidden, unembedding.weight)
        self._hidden = positions.hidden if half else positions.states
        self._lowest = torch.finfo(positions.dtype).min / 4
        own = unembedding.label_logits(positions.hidden, positions.labels)
        self._own, self._maximum = own, own.clone()
        # Sums over all tokens but the label, relative to the largest logit so far.
        # Σ exp(z − maximum), Σ exp(z − maximum) z, and how many exceed the label's.
        self.total, self._weighted, self._rank = own.new_zeros(3, len(own))
        self._top: tuple[Tensor, Tensor] | None = None  # tokens, logits
        self._others = min(top, unembedding.vocabulary_size) - 1
        self._logits: Tensor | None = None
        self._keep = keep
        self._sweep()
        label = (own - self._maximum).exp()
        rest = self.total
        self.total = rest + label
        self.log_normaliser = self._maximum + self.total.log()
        slope = unembedding.transform.slope(own)
        # 1 − p(y) as the sum over the other tokens.
        self.label_error = rest / self.total if slope is None else rest / self.total * slope
        mean = torch.addcmul(self._weighted, label, own) / self.total
        self.tokens = TokenStatistics(
            nll=self.log_normaliser - own, entropy=self.log_normaliser - mean, rank=self._rank
        )

    def _sweep(self) -> None:
        unembedding, count = self._unembedding, len(self._own)
        shape, size = unembedding.sweep, unembedding.vocabulary_size
        columns = shape.columns(count, size, self._positions.dtype)
        if shape.tile is not None and self._others < 1 and not self._keep:
            columns = min(columns, shape.tile[1])  # no block is needed again
        for start in range(0, size, columns):
            block = slice(start, min(start + columns, size))
            logits, largest = self._block(block)
            if self._others > 0:
                self._keep_largest(logits, largest, block.start)
            if self._keep and columns >= size:
                self._logits = logits

    def _block(self, block: slice) -> tuple[Tensor, Tensor | None]:
        """Compute and sum a block's logits; return them, and each group's largest if known."""
        tile, width = self._unembedding.sweep.tile, block.stop - block.start
        if tile is None:
            z = self._unembedding.logits(self._hidden, block)
            rows = range(len(self._positions.lengths))
            return z, self._add(z, rows, slice(0, len(z)), block)
        z = self._own.new_empty(len(self._own), width)
        for start in range(block.start, block.stop, tile[1]):
            inner = slice(start, min(start + tile[1], block.stop))
            place = slice(inner.start - block.start, inner.stop - block.start)
            for rows, span in self._row_spans(tile[0]):
                part = z[span, place]
                self._unembedding.logits(self._hidden[span], inner, out=part)
                self._add(part, rows, span, inner)
        return z, None

    def _row_spans(self, positions: int) -> list[tuple[range, slice]]:
        """Group whole rows into spans of about `positions` positions."""
        if self._spans is None:
            first, self._spans = 0, []
            for rows, chunk in self._positions.chunks(positions):
                last = first + len(chunk.labels)
                self._spans.append((rows, slice(first, last)))
                first = last
        return self._spans

    _spans: list[tuple[range, slice]] | None = None

    def _add(self, z: Tensor, rows: range, span: slice, block: slice) -> Tensor | None:
        """Add a tile to the sums; return the largest entry of each group if known."""
        slope = None if self._visitor is None else self._unembedding.transform.slope(z)
        labels, size = self._positions.labels[span], self._unembedding.vocabulary_size
        set_labels(z, labels, block, self._lowest, whole=z.shape[1] == size)
        own, maximum = self._own[span], self._maximum[span]
        probabilities, groups = None, None
        if is_fused(z):
            raised, total, weighted, rank, groups = fused.sums(z, own, maximum, GROUP, self._lowest)
        else:
            raised = torch.maximum(maximum, z.amax(dim=1))
            rank = _count_above(z, own, wide=self._unembedding.sweep.wide)
            probabilities = torch.sub(z, raised[:, None]).exp_()
            total = probabilities.sum(dim=1)
            weighted = torch.linalg.vecdot(probabilities, z)
        decay = (maximum - raised).exp_()
        self._rank[span] += rank
        self.total[span].mul_(decay).add_(total)
        self._weighted[span].mul_(decay).add_(weighted)
        maximum.copy_(raised)
        if self._visitor is not None:
            tile = Tile(rows, span, block, z, raised, decay, slope, probabilities)
            self._visitor.add(tile)
        return groups

    def _keep_largest(self, z: Tensor, groups: Tensor | None, offset: int) -> None:
        """Merge a block's largest errors into those of earlier blocks, without the labels."""
        size = self._log_size(z)
        place = _largest(size, self._others, groups if size is z else None)
        tokens, logits = place + offset, z.gather(1, place)
        if self._top is not None:
            tokens = torch.cat([self._top[0], tokens], 1)
            logits = torch.cat([self._top[1], logits], 1)
            place = _largest(self._log_size(logits), self._others)
            tokens, logits = tokens.gather(1, place), logits.gather(1, place)
        self._top = tokens, logits

    def _log_size(self, logits: Tensor) -> Tensor:
        """Return a key that sorts a position's errors by magnitude; the label comes last."""
        slope = self._unembedding.transform.slope(logits)
        if slope is None or slope.numel() == 1 < logits.numel():
            return logits
        size = (logits + slope.abs().log()).clamp(min=self._lowest / 2)
        return torch.where(logits > self._lowest / 2, size, self._lowest)

    def finite_rows(self) -> list[bool]:
        """Tell for each row whether the model's output at all its positions is finite."""
        finite = torch.isfinite(self.tokens.nll) & torch.isfinite(self.tokens.entropy)
        rows = self._positions.padded
        kept: list[bool] = finite[rows.index].all(dim=1).tolist()
        return kept

    def blocks(self, width: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield (block of the vocabulary, e [P, width of the block]).

        Args:
            width: width of a block; by default that of the sweep's shape.
        """
        unembedding, labels = self._unembedding, self._positions.labels
        size = unembedding.vocabulary_size
        if width is None:
            tile = unembedding.sweep.tile
            count, dtype = len(labels), self._positions.dtype
            width = unembedding.sweep.columns(count, size, dtype) if tile is None else tile[1]
        for start in range(0, size, width):
            block = slice(start, min(start + width, size))
            kept = self._logits
            z = unembedding.logits(self._hidden, block) if kept is None else kept[:, block]
            error = torch.sub(z, self.log_normaliser[:, None]).exp_().neg_()
            slope = unembedding.transform.slope(z)
            if slope is not None:
                error.mul_(slope)
            set_labels(error, labels, block, self.label_error)
            yield block, error

    def top(self) -> tuple[Tensor, Tensor]:
        """Return the entries of e that are largest in magnitude, the label's always among them.

        Returns:
            (tokens [P, k] int64, distinct in each position; e at those tokens [P, k]). k is `top`,
            but at most the size of the vocabulary; the label comes last.
        """
        labels = self._positions.labels[:, None]
        if self._top is None:
            return labels, self.label_error[:, None]
        tokens, logits = self._top
        error = (logits - self.log_normaliser[:, None]).exp_().neg_()
        slope = self._unembedding.transform.slope(logits)
        if slope is not None:
            error.mul_(slope)
        return torch.cat([tokens, labels], 1), torch.cat([error, self.label_error[:, None]], 1)


def is_fused(z: Tensor) -> bool:
    """Tell whether logits are summed in one reading (`valuation.fused`)."""
    return fused is not None and z.is_cuda and z.dtype == torch.float32


def positions_at_once(unembedding: Unembedding, positions: ResponsePositions) -> int:
    """Return for how many positions all logits are in memory at a time."""
    return unembedding.sweep.positions(unembedding.vocabulary_size, positions.dtype)


def set_labels(
    tile: Tensor, labels: Tensor, block: slice, value: Tensor | float, *, whole: bool = False
) -> None:
    """Set the entry of each position's label, where it lies in the block.

    Args:
        tile: [n, width of the block].
        labels: labels of those positions [n].
        block: the block of the vocabulary.
        value: for each position [n], or one for all.
        whole: whether the block is the whole vocabulary.
    """
    if isinstance(value, Tensor):
        value = value[:, None]
    if whole:
        tile.scatter_(1, labels[:, None], value)
        return
    column = (labels - block.start)[:, None]
    inside = (column >= 0) & (column < tile.shape[1])
    column = column.clamp_(0, tile.shape[1] - 1)
    tile.scatter_(1, column, torch.where(inside, value, tile.gather(1, column)))


def _largest(z: Tensor, count: int, groups: Tensor | None = None) -> Tensor:
    """Return the places of the largest entries of each row [n, count], or fewer if it has fewer.

    The k largest lie in the k groups with the largest maxima, a small part of a large vocabulary.

    Args:
        z: rows of entries [n, C].
        count: k.
        groups: the largest entry of each group of `GROUP`, if it is known [n, ⌈C / GROUP⌉].
    """
    width = z.shape[1]
    count = min(count, width)
    if width < 2 * count * GROUP:
        return z.topk(count, dim=1, sorted=False).indices
    whole = width // GROUP * GROUP
    if groups is None:
        groups = torch.unflatten(z[:, :whole], 1, (-1, GROUP)).amax(dim=2)
    best = groups[:, : whole // GROUP].topk(count, dim=1, sorted=False).indices
    place = (best[..., None] * GROUP + torch.arange(GROUP, device=z.device)).flatten(1)
    if whole < width:
        rest = torch.arange(whole, width, device=z.device).expand(len(z), -1)
        place = torch.cat([place, rest], 1)
    return place.gather(1, z.gather(1, place).topk(count, dim=1, sorted=False).indices)


def _count_above(z: Tensor, reference: Tensor, *, wide: bool) -> Tensor:
    """Return how many entries of each row exceed its reference [n].

    (Summing signs is three times as fast on a CPU as counting booleans.)
    """
    if wide:
        return (z > reference[:, None]).sum(dim=1, dtype=reference.dtype)
    above = torch.sub(z, reference[:, None]).sign_().clamp_(min=0)
    return above.sum(dim=1)
