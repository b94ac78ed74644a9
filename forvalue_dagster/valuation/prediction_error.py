"""Prediction errors at the response positions of some rows, one vocabulary block at a time.

    e_t = f′(z_t) ⊙ (onehot(y_t) − softmax(z_t))      with z_t = f(W h_t + b)

The gradient of a row's summed response log-likelihood at the unembedding is
G_i = Σ_t e_t h_tᵀ (For-Value, arXiv 2508.10180, Theorem 1): everything of value follows from
these blocks, and neither a [B, T, V] tensor nor a whole V×D matrix per row is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from forvalue_dagster.valuation.unembedding import Unembedding

# Wide enough for efficient products, narrow enough that a block stays in the processor's cache.
VOCABULARY_BLOCK = 1024
# Logits of a chunk are kept between the two passes over the vocabulary up to this size.
WORKSPACE_BYTES = 96 * 2**20


@dataclass(frozen=True)
class ResponsePositions:
    """The response positions of some rows, concatenated.

    Attributes:
        hidden: last hidden states [P, D], float32 or float64.
        labels: the token that follows each position [P], int64.
        lengths: how many positions each row has; sums to P, every entry at least 1.
    """

    hidden: Tensor
    labels: Tensor
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse shapes that do not belong together."""
        positions = self.hidden.shape[0]
        if self.labels.shape != (positions,) or sum(self.lengths) != positions:
            raise ValueError(
                f"Expected as many labels and row lengths as positions; got {positions} hidden "
                f"states, {tuple(self.labels.shape)} labels, lengths summing to "
                f"{sum(self.lengths)}."
            )
        if min(self.lengths, default=1) < 1:
            raise ValueError("A row without response positions has no value; leave it out.")

    @classmethod
    def from_batch(cls, hidden: Tensor, input_ids: Tensor, mask: Tensor) -> ResponsePositions:
        """Take the response positions out of a padded batch.

        Args:
            hidden: last hidden states [B, T, D].
            input_ids: tokens [B, T].
            mask: r [B, T], bool, True at a position whose *next* token is scored.
        """
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        labels = input_ids.roll(-1, dims=1)[mask]
        return cls(hidden[mask].to(dtype), labels, tuple(mask.sum(dim=1).tolist()))

    @classmethod
    def concatenate(cls, parts: Sequence[ResponsePositions]) -> ResponsePositions:
        """Join the rows of several batches."""
        return cls(
            torch.cat([part.hidden for part in parts]),
            torch.cat([part.labels for part in parts]),
            tuple(length for part in parts for length in part.lengths),
        )

    def row_slices(self) -> list[slice]:
        """Where each row's positions lie."""
        ends = torch.tensor(self.lengths).cumsum(0).tolist()
        return [slice(end - n, end) for end, n in zip(ends, self.lengths, strict=True)]

    def select(self, rows: Sequence[bool]) -> ResponsePositions:
        """Return the positions of the rows marked True."""
        positions = self.positions_of(rows)
        lengths = tuple(compress(self.lengths, rows))
        return ResponsePositions(self.hidden[positions], self.labels[positions], lengths)

    def positions_of(self, rows: Sequence[bool]) -> Tensor | slice:
        """Return the index of the positions that belong to the rows marked True."""
        if all(rows):
            return slice(None)
        device = self.hidden.device
        lengths = torch.tensor(self.lengths, device=device)
        return torch.tensor(rows, device=device).repeat_interleave(lengths)

    def chunks(self, positions: int) -> Iterator[tuple[range, ResponsePositions]]:
        """Split into groups of whole rows of at most `positions` positions each.

        A longer row stands alone. Yields (indices of the rows, their positions).
        """
        slices = self.row_slices()
        first = 0
        while first < len(slices):
            last = first + 1
            while last < len(slices) and slices[last].stop - slices[first].start <= positions:
                last += 1
            span = slice(slices[first].start, slices[last - 1].stop)
            yield (
                range(first, last),
                ResponsePositions(self.hidden[span], self.labels[span], self.lengths[first:last]),
            )
            first = last


@dataclass(frozen=True)
class TokenStatistics:
    """What one forward pass says of each scored token, float32 or float64 [P].

    Attributes:
        nll: −log p(y_t), nats.
        entropy: of p_t, nats.
        rank: how many tokens the model holds more likely than y_t.
    """

    nll: Tensor
    entropy: Tensor
    rank: Tensor

    @classmethod
    def concatenate(cls, parts: Sequence[TokenStatistics]) -> TokenStatistics:
        """Join the statistics of several chunks."""
        return cls(
            nll=torch.cat([part.nll for part in parts]),
            entropy=torch.cat([part.entropy for part in parts]),
            rank=torch.cat([part.rank for part in parts]),
        )


class PredictionErrors:
    """Two sweeps over the vocabulary: the softmax's normaliser, then the errors block by block.

    Attributes:
        tokens: statistics of every position, known after the first sweep.

    Args:
        unembedding: W, b and f.
        positions: P response positions.
        block: width of a vocabulary block.
    """

    def __init__(
        self,
        unembedding: Unembedding,
        positions: ResponsePositions,
        *,
        block: int = VOCABULARY_BLOCK,
    ) -> None:
        self._unembedding = unembedding
        self._positions = positions
        self._block = block
        count = len(positions.labels)
        # Kept between the sweeps where they fit, else computed twice.
        fits = count <= workspace_positions(unembedding, positions.hidden)
        shape = (count, unembedding.vocabulary_size)
        self._logits = positions.hidden.new_empty(shape) if fits else None
        self._log_normaliser, self.tokens = self._normalise()

    def _normalise(self) -> tuple[Tensor, TokenStatistics]:
        hidden, labels = self._positions.hidden, self._positions.labels
        reference = self._unembedding.label_logits(hidden, labels)
        maximum = torch.full_like(reference, -torch.inf)
        total = torch.zeros_like(reference)  # Σ exp(z − maximum)
        weighted = torch.zeros_like(reference)  # Σ exp(z − maximum) (z − maximum)
        label_logit = torch.zeros_like(reference)
        rank = torch.zeros_like(reference)
        for vocabulary in self._vocabulary_blocks():
            z = self._unembedding.logits(hidden, vocabulary)
            if self._logits is not None:
                self._logits[:, vocabulary] = z
            column, inside = _label_columns(labels, vocabulary)
            own = z.gather(1, column)[:, 0]
            label_logit += torch.where(inside, own, 0.0)
            # The label never outranks itself, however its logit was rounded.
            rank += _count_above(z, reference) - (inside & (own > reference)).to(z.dtype)
            raised = torch.maximum(maximum, z.amax(dim=1))
            # Refer the sums so far to the new maximum. Nothing is summed before the first block.
            shift = torch.where(total > 0, maximum - raised, 0.0)
            decay = shift.exp()
            weighted = decay * (weighted + shift * total)
            total = decay * total
            z = z.sub_(raised[:, None])
            exponential = z.exp()
            total += exponential.sum(dim=1)
            weighted += torch.linalg.vecdot(exponential, z)
            maximum = raised
        log_normaliser = maximum + total.log()
        tokens = TokenStatistics(
            nll=log_normaliser - label_logit, entropy=total.log() - weighted / total, rank=rank
        )
        return log_normaliser, tokens

    def finite_rows(self) -> list[bool]:
        """Tell for each row whether the model's output at all its positions is finite."""
        finite = torch.isfinite(self.tokens.nll) & torch.isfinite(self.tokens.entropy)
        return [bool(finite[row].all()) for row in self._positions.row_slices()]

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (block of the vocabulary, e [P, width of the block])."""
        hidden, labels = self._positions.hidden, self._positions.labels
        for vocabulary in self._vocabulary_blocks():
            if self._logits is not None:
                z = self._logits[:, vocabulary]
            else:
                z = self._unembedding.logits(hidden, vocabulary)
            error = torch.sub(z, self._log_normaliser[:, None]).exp_().neg_()
            column, inside = _label_columns(labels, vocabulary)
            error.scatter_add_(1, column, inside.to(error.dtype)[:, None])
            slope = self._unembedding.transform.slope(z)
            yield vocabulary, error if slope is None else error.mul_(slope)

    def top(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the entries of e that are largest in magnitude, the label's always among them.

        Args:
            count: k; cut to the size of the vocabulary.

        Returns:
            (tokens [P, k] int64, distinct in each position; e at those tokens [P, k]).
        """
        hidden, labels = self._positions.hidden, self._positions.labels
        count = min(count, self._unembedding.vocabulary_size)
        transform = self._unembedding.transform
        # log |e_u| + log_normaliser, for every token but the label. Kept logits are one block.
        key = hidden.new_empty(len(labels), 0)
        tokens = labels.new_empty(len(labels), 0)
        logits = hidden.new_empty(len(labels), 0)
        whole = [slice(0, self._unembedding.vocabulary_size)]
        for vocabulary in whole if self._logits is not None else self._vocabulary_blocks():
            kept = self._logits
            z = self._unembedding.logits(hidden, vocabulary) if kept is None else kept
            slope = transform.slope(z)
            log_error = z if slope is None else z + slope.abs().log()
            best, place = log_error.topk(min(count, z.shape[1]), dim=1, sorted=False)
            key, order = torch.cat([key, best], 1).topk(min(count, key.shape[1] + best.shape[1]), 1)
            tokens = torch.cat([tokens, place + vocabulary.start], 1).gather(1, order)
            logits = torch.cat([logits, z.gather(1, place)], 1).gather(1, order)
        # The smallest entry gives way to a label that is not among them.
        absent = (tokens != labels[:, None]).all(dim=1)
        tokens[:, -1] = torch.where(absent, labels, tokens[:, -1])
        own = self._unembedding.label_logits(hidden, labels)
        logits[:, -1] = torch.where(absent, own, logits[:, -1])
        error = (tokens == labels[:, None]).to(logits.dtype) - (
            logits - self._log_normaliser[:, None]
        ).exp()
        slope = transform.slope(logits)
        return tokens, error if slope is None else error * slope

    def _vocabulary_blocks(self) -> Iterator[slice]:
        size = self._unembedding.vocabulary_size
        for start in range(0, size, self._block):
            yield slice(start, min(start + self._block, size))


def workspace_positions(unembedding: Unembedding, hidden: Tensor) -> int:
    """How many positions' logits, in the dtype of `hidden`, fit the workspace; at least 1."""
    return max(1, WORKSPACE_BYTES // (unembedding.vocabulary_size * hidden.element_size()))


def _label_columns(labels: Tensor, vocabulary: slice) -> tuple[Tensor, Tensor]:
    """Return (column of each label clamped into the block [P, 1], whether it lies there [P])."""
    column = (labels - vocabulary.start).clamp(0, vocabulary.stop - vocabulary.start - 1)
    inside = (labels >= vocabulary.start) & (labels < vocabulary.stop)
    return column[:, None], inside


def _count_above(z: Tensor, reference: Tensor) -> Tensor:
    """Return how many entries of each row exceed its reference [P].

    (Summing signs is three times as fast on a CPU as counting booleans.)
    """
    above = torch.sub(z, reference[:, None]).sign_().clamp_(min=0)
    return above.sum(dim=1)
