"""How the work is cut — vocabulary blocks, workspace, chunks of rows — changes no number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from forvalue_dagster.valuation.positions import ResponsePositions
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.prediction_error import PredictionErrors
from forvalue_dagster.valuation.profile_builder import ProfileBuilder
from forvalue_dagster.valuation.sweep_shape import SweepShape
from forvalue_dagster.valuation.unembedding import Scale, SoftCap, Unembedding
from forvalue_dagster.valuation.value import exact_values

V, D = 101, 8


def make(transform: object = None, seed: int = 0) -> tuple[Unembedding, ResponsePositions]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    hidden = torch.randn(20, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, V, (20,), generator=generator)
    unembedding = Unembedding(weight, transform=transform) if transform else Unembedding(weight)
    return unembedding, ResponsePositions(hidden, labels, (6, 1, 9, 4))


def profile_of(unembedding: Unembedding, positions: ResponsePositions):
    builder = ProfileBuilder(unembedding, ["all"])
    builder.add(positions, ["all"] * len(positions.lengths), range(len(positions.lengths)))
    return builder.build()


@pytest.mark.parametrize("block", [1, 7, 100, 101, 4096])
@pytest.mark.parametrize("transform", [SoftCap(4.0), Scale(0.5), None], ids=repr)
@pytest.mark.parametrize("keep", [True, False])
def test_errors_do_not_depend_on_the_block(block: int, transform: object, keep: bool) -> None:
    unembedding, positions = make(transform)
    whole = torch.cat([e for _, e in PredictionErrors(unembedding, positions).blocks()], dim=1)
    parts = PredictionErrors(unembedding, positions, keep=keep)
    torch.testing.assert_close(torch.cat([e for _, e in parts.blocks(block)], dim=1), whole)
    blocks = [vocabulary for vocabulary, _ in parts.blocks(block)]
    assert [b.stop - b.start for b in blocks] == [
        min(block, V - start) for start in range(0, V, block)
    ]


@pytest.mark.parametrize("tile", [(4, 7), (9, 64), None], ids=["small", "larger", "wide"])
@pytest.mark.parametrize("workspace", [1, 6 * V * 8, 2**30], ids=["none", "some", "all"])
def test_values_do_not_depend_on_the_shape(workspace: int, tile: tuple[int, int] | None) -> None:
    unembedding, positions = make()
    profile = profile_of(unembedding, positions)
    direction = profile.direction(Preconditioner())
    expected = exact_values(unembedding, positions, direction)
    unembedding = replace(unembedding, shape=SweepShape(tile, workspace))
    again = exact_values(unembedding, positions, direction)
    torch.testing.assert_close(again.rows.value, expected.rows.value)
    torch.testing.assert_close(again.rows.norm, expected.rows.norm)
    torch.testing.assert_close(again.tokens.nll, expected.tokens.nll)
    torch.testing.assert_close(profile_of(unembedding, positions).gradients, profile.gradients)


@pytest.mark.parametrize("limit", [1, 7, 10, 20, 1000])
def test_chunks_hold_whole_rows_in_order(limit: int) -> None:
    _, positions = make()
    chunks = list(positions.chunks(limit))
    assert [row for rows, _ in chunks for row in rows] == [0, 1, 2, 3]
    rejoined = ResponsePositions.concatenate([chunk for _, chunk in chunks])
    assert rejoined.lengths == positions.lengths
    assert torch.equal(rejoined.hidden, positions.hidden)
    assert all(len(rows) == 1 or sum(chunk.lengths) <= limit for rows, chunk in chunks)


def test_extreme_logits_stay_finite() -> None:
    """A prediction of certainty, right or wrong: the sums must not overflow or divide 0 by 0."""
    unembedding, positions = make()
    sharp = ResponsePositions(positions.hidden * 1e4, positions.labels, positions.lengths)
    unembedding = replace(unembedding, shape=SweepShape((4, 7), 2**20))
    tokens = PredictionErrors(unembedding, sharp).tokens
    reference = (sharp.hidden @ unembedding.weight.T).log_softmax(-1)
    torch.testing.assert_close(tokens.nll, -reference.gather(1, sharp.labels[:, None])[:, 0])
    assert torch.isfinite(tokens.entropy).all()
    assert (tokens.entropy >= -1e-9).all()


def test_a_row_without_gradient_has_alignment_zero() -> None:
    unembedding, positions = make()
    direction = profile_of(unembedding, positions).direction(Preconditioner("none"))
    silent = ResponsePositions(torch.zeros(1, D, dtype=torch.float64), positions.labels[:1], (1,))
    values = exact_values(unembedding, silent, direction).rows
    assert values.norm.item() == 0
    assert values.alignment.item() == 0


def test_a_validation_row_that_is_not_finite_is_left_out_and_told() -> None:
    unembedding, positions = make()
    hidden = positions.hidden.clone()
    hidden[6] = torch.nan  # the only position of the second row
    broken = ResponsePositions(hidden, positions.labels, positions.lengths)
    builder = ProfileBuilder(unembedding, ["all"])
    assert builder.add(broken, ["all"] * 4, range(4)) == [True, False, True, True]
    profile = builder.build()
    clean = ResponsePositions(
        torch.cat([positions.hidden[:6], positions.hidden[7:]]),
        torch.cat([positions.labels[:6], positions.labels[7:]]),
        (6, 9, 4),
    )
    torch.testing.assert_close(profile.gradients, profile_of(unembedding, clean).gradients)
    assert profile.counts == (3,)


def test_a_group_without_usable_rows_is_refused() -> None:
    unembedding, positions = make()
    builder = ProfileBuilder(unembedding, ["a", "b"])
    builder.add(positions, ["a"] * 4, range(4))
    with pytest.raises(ValueError, match="No validation row of group 'b'"):
        builder.build()


@pytest.mark.parametrize(
    ("labels", "lengths", "message"),
    [
        (torch.zeros(3, dtype=torch.long), (4,), "as many labels"),
        (torch.zeros(4, dtype=torch.long), (3,), "as many labels"),
        (torch.zeros(4, dtype=torch.long), (4, 0), "has no value"),
    ],
)
def test_shapes_that_do_not_belong_together(labels, lengths, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResponsePositions(torch.zeros(4, D), labels, lengths)


def test_profile_survives_storage() -> None:
    profile = profile_of(*make())
    again = type(profile).from_tensors(*profile.to_tensors())
    assert again.groups == profile.groups
    assert again.counts == profile.counts
    assert torch.equal(again.gradients, profile.gradients)
    assert all(torch.equal(again.statistics[k], v) for k, v in profile.statistics.items())
