"""The exact value of rows against a validation direction, with norms and statistics.

    value_g(i) = ⟨G_i, Ḡ_g⟩,   alignment(i) = ⟨G_i, Ḡ⟩ / (‖G_i‖ ‖Ḡ‖)

(For-Value, arXiv 2508.10180, Eq. 1, with the full vocabulary.) Positive means that a gradient
step on row i raises the likelihood of the validation rows. There are two ways, both exact:

- by products: value_g(i) = Σ_t e_tᵀ (Ḡ_g h̃_t) and ‖G_i‖² = Σ_{s,t} ⟨e_s, e_t⟩ ⟨h̃_s, h̃_t⟩, in the
  sweep that gives the statistics; one more product over the vocabulary for each group;
- by gradients: G_i = E_iᵀ H̃_i block by block, row by row, against every group's block. More
  groups then cost almost nothing, as long as a block stays in the processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forvalue_dagster.valuation.positions import ResponsePositions
from forvalue_dagster.valuation.prediction_error import (
    PredictionErrors,
    Tile,
    TokenStatistics,
    fused,
    is_fused,
    positions_at_once,
)
from forvalue_dagster.valuation.products import (
    SplitFactor,
    batched_product,
    product,
    self_products,
    split_bfloat16,
    takes_half,
)
from forvalue_dagster.valuation.profile import ValueDirection
from forvalue_dagster.valuation.unembedding import Unembedding


@dataclass(frozen=True)
class RowValues:
    """The values of R rows along a direction, however they were computed.

    Attributes:
        groups: value of each row for each group [R, G], float64.
        value: value of each row for the mean of all validation rows [R], float64.
        norm: ‖G_i‖ in the direction's metric [R], float64.
        alignment: cosine form of `value` [R], float64 in [−1, 1].
    """

    groups: Tensor
    value: Tensor
    norm: Tensor
    alignment: Tensor

    @classmethod
    def measure(cls, direction: ValueDirection, groups: Tensor, squared_norms: Tensor) -> RowValues:
        """Derive everything from ⟨G_i, Ḡ_g⟩ [R, G] and ‖G_i‖² [R], float64."""
        value = groups @ direction.weights.to(groups.device)
        norm = squared_norms.clamp(min=0).sqrt()
        # A row without gradient has no direction: its cosine is zero, not 0/0.
        alignment = torch.where(norm > 0, value / (norm * direction.norm), 0.0)
        return cls(groups, value, norm, alignment)


@dataclass(frozen=True)
class ExactValues:
    """The exact values and statistics of R rows with P response tokens.

    Attributes:
        rows: their values, on the positions' device.
        tokens: statistics of every response token [P].
    """

    rows: RowValues
    tokens: TokenStatistics


@torch.inference_mode()
def exact_values(
    unembedding: Unembedding, positions: ResponsePositions, direction: ValueDirection
) -> ExactValues:
    """Score rows.

    Args:
        unembedding: the model's unembedding.
        positions: the rows' response positions.
        direction: result of `ValidationProfile.direction`, on the same device and dtype.
    """
    way = _by_gradients
    if unembedding.sweep.wide or len(direction.groups) == 1:
        way = _by_products
    groups, squared_norms, tokens = [], [], []
    for _, chunk in positions.chunks(positions_at_once(unembedding, positions)):
        inner, squared, seen = way(unembedding, chunk, direction)
        groups.append(inner)
        squared_norms.append(squared)
        tokens.append(seen)
    return ExactValues(
        RowValues.measure(direction, torch.cat(groups), torch.cat(squared_norms)),
        TokenStatistics.concatenate(tokens),
    )


def _by_gradients(
    unembedding: Unembedding, positions: ResponsePositions, direction: ValueDirection
) -> tuple[Tensor, Tensor, TokenStatistics]:
    errors = PredictionErrors(unembedding, positions, keep=True)
    rows = positions.row_slices()
    whitened = direction.metric.apply(positions.states)
    inner = torch.zeros(len(rows), len(direction.groups) + 1, dtype=torch.float64)
    for block, error in errors.blocks():
        against = direction.gradients[:, block]
        inner += torch.stack(
            [_inner_products(error[row].T @ whitened[row], against) for row in rows]
        ).to(inner)
    return inner[:, :-1], inner[:, -1], errors.tokens


def _inner_products(gradient: Tensor, against: Tensor) -> Tensor:
    """Return ⟨G, Ḡ_g⟩ for every group, then ‖G‖², all of one block [G + 1]."""
    flat = gradient.flatten()
    return torch.stack([torch.dot(flat, g.flatten()) for g in against] + [torch.dot(flat, flat)])


def _by_products(
    unembedding: Unembedding, positions: ResponsePositions, direction: ValueDirection
) -> tuple[Tensor, Tensor, TokenStatistics]:
    along = _Along(unembedding, positions, direction)
    errors = PredictionErrors(unembedding, positions, visitor=along)
    return along.values(errors), along.squared_norms(errors), errors.tokens


class _Along:
    """Sums over the vocabulary: probabilities times Ḡh̃, and pairs of a row's probabilities."""

    def __init__(
        self, unembedding: Unembedding, positions: ResponsePositions, direction: ValueDirection
    ) -> None:
        self._unembedding, self._positions, self._direction = unembedding, positions, direction
        self._whitened = direction.metric.apply(positions.states)
        # On a GPU, products in float32 would take most of a half-precision model's time.
        self._half = takes_half(positions.hidden, unembedding.weight)
        self._factor = SplitFactor.left(self._whitened) if self._half else None
        rows, longest = positions.padded.index.shape
        zeros = self._whitened.new_zeros
        self._sums = zeros(len(positions.labels), len(direction.groups))
        self._pairs = zeros(rows, longest, longest)

    def add(self, tile: Tile) -> None:
        sums = self._sums[tile.span]
        sums.mul_(tile.decay[:, None])
        fuse = self._half and is_fused(tile.logits) and tile.slope is None
        parts = self._empty_parts(tile) if fuse else None
        for group in range(sums.shape[1]):
            against, factor = self._product(group, tile)
            if fuse:
                written = parts if group == 0 else None
                place = self._positions.padded.place
                found = fused.weigh(tile.logits, tile.maximum, against, place, written)
            else:
                if tile.slope is not None:
                    against.mul_(tile.slope)
                found = torch.linalg.vecdot(tile.probabilities, against)
            sums[:, group] += found if factor is None else found / factor[:, 0]
        if parts is None:
            self._add_pairs(tile)
        else:
            self._decay_pairs(tile)
            self._pairs += self_products(*parts)

    def _empty_parts(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Return room for probabilities, row by row, in two bfloat16 parts."""
        rows, width = self._positions.padded.index.shape, tile.logits.shape[1]
        high, low = (
            torch.empty(*rows, width, dtype=torch.bfloat16, device=tile.logits.device)
            for _ in range(2)
        )
        return high, low

    def _product(self, group: int, tile: Tile) -> tuple[Tensor, Tensor | None]:
        """Return h̃ Ḡᵀ [n, width of the block], and what its rows are multiplied by."""
        if self._factor is not None:
            left, right = self._factor, self._direction.split(group)
            left = SplitFactor(left.parts[tile.span], left.scale[tile.span])
            return left.times(SplitFactor(right.parts[tile.block], right.scale))
        against = self._direction.gradients[group, tile.block]
        return product(self._whitened[tile.span], against), None

    def _add_pairs(self, tile: Tile) -> None:
        probabilities = tile.probabilities
        if tile.slope is not None:
            probabilities = probabilities * tile.slope
        if self._unembedding.sweep.wide:
            self._decay_pairs(tile)
            rows = probabilities[self._positions.padded.index]
            self._pairs.baddbmm_(rows, rows.transpose(1, 2))
            return
        first = tile.span.start
        for row in tile.rows:
            length = self._positions.lengths[row]
            own = slice(first - tile.span.start, first - tile.span.start + length)
            pairs, decay = self._pairs[row, :length, :length], tile.decay[own]
            pairs.mul_(decay[:, None]).mul_(decay)
            pairs.addmm_(probabilities[own], probabilities[own].T)
            first += length

    def _decay_pairs(self, tile: Tile) -> None:
        if tile.block.start > 0:
            decay = tile.decay[self._positions.padded.index]
            self._pairs.mul_(decay[:, None]).mul_(decay[..., None])

    def values(self, errors: PredictionErrors) -> Tensor:
        """Return ⟨G_i, Ḡ_g⟩ [R, G], float64."""
        rows, labels = self._positions.padded, self._positions.labels
        own = torch.stack(
            [torch.linalg.vecdot(g[labels], self._whitened) for g in self._direction.gradients], 1
        )
        value = errors.label_error[:, None] * own - self._sums / errors.total[:, None]
        padded: Tensor = value[rows.index].double() * rows.inside[..., None]
        return padded.sum(dim=1)

    def squared_norms(self, errors: PredictionErrors) -> Tensor:
        """Return ‖G_i‖² [R], float64.

        With e_s = a_s onehot(y_s) − q_s, where q_s has no entry at its own label,

            ⟨e_s, e_t⟩ = a_s a_t [y_s = y_t] − a_s q_t[y_s] − a_t q_s[y_t] + ⟨q_s, q_t⟩.
        """
        rows, unembedding = self._positions.padded, self._unembedding
        labels = self._positions.labels[rows.index]
        # z_s at the labels of all positions of the row [R, T, T].
        hidden = self._positions.hidden[rows.index]
        logits = batched_product(hidden, unembedding.weight[labels])
        if unembedding.bias is not None:
            logits += unembedding.bias[labels].to(logits.dtype)[:, None]
        logits = unembedding.transform.apply(logits)
        at_labels = (logits - errors.log_normaliser[rows.index][..., None]).exp_()
        slope = unembedding.transform.slope(logits)
        if slope is not None:
            at_labels.mul_(slope)
        same = labels[:, None] == labels[..., None]
        at_labels = torch.where(same, 0.0, at_labels)
        own = errors.label_error[rows.index]
        crossed = own[:, None] * at_labels  # a_t q_s[y_t]
        total = errors.total[rows.index]
        products = (own[:, None] * own[..., None]).masked_fill_(~same, 0.0)
        products += self._pairs / (total[:, None] * total[..., None])
        products -= crossed
        products -= crossed.transpose(1, 2)
        whitened = self._whitened[rows.index]
        if self._half:
            products *= self_products(*split_bfloat16(whitened))
        else:
            products *= batched_product(whitened, whitened)
        inside = rows.inside[:, None] & rows.inside[..., None]
        products = products.masked_fill_(~inside, 0.0)
        return torch.sum(products, dim=(1, 2), dtype=torch.float64)
