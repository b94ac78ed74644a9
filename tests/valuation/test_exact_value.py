"""The exact value against autograd: float64 on tiny models of many families."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from forvalue_dagster.valuation.pairwise import pairwise_values
from forvalue_dagster.valuation.positions import ResponsePositions
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.prediction_error import PredictionErrors
from forvalue_dagster.valuation.profile import ValidationProfile
from forvalue_dagster.valuation.profile_builder import ProfileBuilder
from forvalue_dagster.valuation.sweep_shape import SweepShape, wide
from forvalue_dagster.valuation.unembedding import (
    Unembedding,
    capture_last_hidden,
    verified_unembedding,
)
from forvalue_dagster.valuation.value import exact_values
from tests.tiny import FAMILIES, VOCABULARY, tiny_model

LENGTHS = (5, 12, 9, 17, 3)
GROUPS = ("a", "b", "a", "b", "b")
# Each with sums over several blocks of the vocabulary: tiles, the whole of it, and a workspace
# that holds it only in part.
SHAPES = {
    "blocked": SweepShape(tile=(16, 37), workspace=2**12),
    "blocked, held": SweepShape(tile=(256, 64), workspace=2**30),
    "wide": wide(2**30),
    "wide, in parts": wide(2**13),
}
METRICS = [Preconditioner("none"), Preconditioner("activation", damping=0.05)]


@dataclass(frozen=True)
class PaddedRows:
    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor


def padded_rows(seed: int = 1) -> PaddedRows:
    """Rows of several lengths, padded on the right, with a prompt that is not scored."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(LENGTHS), max(LENGTHS))
    input_ids = torch.randint(3, VOCABULARY, shape, generator=generator)
    place = torch.arange(shape[1])
    length = torch.tensor(LENGTHS)[:, None]
    mask = (place >= length // 3) & (place < length - 1)
    return PaddedRows(input_ids, (place < length).long(), mask)


def response_positions(model: torch.nn.Module, rows: PaddedRows) -> ResponsePositions:
    with torch.inference_mode(), capture_last_hidden(model) as captured:
        model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
    return ResponsePositions.from_batch(captured[0], rows.input_ids.numpy(), rows.mask.numpy())


def autograd_gradients(model: torch.nn.Module, rows: PaddedRows) -> list[Tensor]:
    """G_i by backpropagation through the model's own logits, the head untied.

    On the same padded batch: many families normalise in float32 even in a float64 model, so
    that another batch alone would move the hidden states by 1e-7.
    """
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    logits = model(
        input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False
    ).logits
    picked = logits.log_softmax(-1)[:, :-1].gather(2, rows.input_ids[:, 1:, None])[..., 0]
    likelihoods = (picked * rows.mask[:, :-1]).sum(1)
    return [
        torch.autograd.grad(likelihood, head.weight, retain_graph=True)[0]
        for likelihood in likelihoods
    ]


def unembedding_of(model: torch.nn.Module, rows: PaddedRows) -> Unembedding:
    ids = rows.input_ids[:1, :5]
    return verified_unembedding(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


@dataclass(frozen=True)
class Case:
    positions: ResponsePositions
    profile: ValidationProfile
    unembedding: Unembedding
    gradients: list[Tensor]


def make_case(family: str, dtype: torch.dtype, shape: str = "blocked") -> Case:
    rows = padded_rows()
    model = tiny_model(family, dtype)
    unembedding = replace(unembedding_of(model, rows), shape=SHAPES[shape])
    positions = response_positions(model, rows)
    builder = ProfileBuilder(unembedding, ["a", "b"])
    assert all(builder.add(positions, GROUPS, range(len(GROUPS))))
    # The truth is always float64, whatever the dtype under test.
    truth = tiny_model(family, torch.float64)
    return Case(positions, builder.build(), unembedding, autograd_gradients(truth, rows))


def metric(case: Case, preconditioner: Preconditioner) -> Tensor:
    """P, spelled out by its definition."""
    hidden = case.positions.hidden.double()
    identity = torch.eye(hidden.shape[1], dtype=torch.float64)
    if preconditioner.kind == "none":
        return identity
    second_moment = hidden.T @ hidden / len(hidden)
    scale = second_moment.trace() / len(identity)
    return torch.linalg.inv(second_moment + preconditioner.damping * scale * identity)


@pytest.mark.parametrize("preconditioner", METRICS, ids=lambda p: p.kind)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_value_norm_and_pairs_are_those_of_autograd(
    family: str, shape: str, dtype: torch.dtype, preconditioner: Preconditioner
) -> None:
    case = make_case(family, dtype, shape)
    P = metric(case, preconditioner)
    direction = case.profile.direction(preconditioner)
    values = exact_values(case.unembedding, case.positions, direction).rows
    pairs = pairwise_values(case.unembedding, case.positions, case.positions, direction.metric)

    G = case.gradients
    group_means = [
        torch.stack([g for g, name in zip(G, GROUPS, strict=True) if name == group]).mean(0)
        for group in ("a", "b")
    ]
    mean = torch.stack(G).mean(0)

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return ((a @ P) * b).sum()

    norm = torch.stack([inner(g, g).sqrt() for g in G])
    # The bars of the method: relative to the norms, since a value may be small by cancellation.
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    mean_norm = inner(mean, mean).sqrt()
    for index, gradient in enumerate(G):
        expected = torch.stack([inner(gradient, m) for m in group_means])
        bound = tolerance * norm[index] * torch.stack([inner(m, m).sqrt() for m in group_means])
        assert ((values.groups[index] - expected).abs() <= bound).all()
        assert (
            abs(values.value[index] - inner(gradient, mean)) <= tolerance * norm[index] * mean_norm
        )
        assert abs(values.norm[index] - norm[index]) <= tolerance * norm[index]
        cosine = inner(gradient, mean) / (norm[index] * mean_norm)
        assert abs(values.alignment[index] - cosine) <= 10 * tolerance
        for other, against in enumerate(G):
            bound = tolerance * norm[index] * norm[other]
            assert abs(pairs[index, other] - inner(gradient, against)) <= bound


def test_value_is_the_double_sum_over_positions() -> None:
    """Theorem 1: Σ_t Σ_s ⟨e_t, e_s⟩ ⟨h_t, h_s⟩."""
    case = make_case("llama", torch.float64)
    blocks = PredictionErrors(case.unembedding, case.positions).blocks()
    E = torch.cat([error for _, error in blocks], dim=1)
    H = case.positions.hidden
    products = (E @ E.T) * (H @ H.T)
    pairs = pairwise_values(case.unembedding, case.positions, case.positions)
    for i, row in enumerate(case.positions.row_slices()):
        for v, other in enumerate(case.positions.row_slices()):
            torch.testing.assert_close(pairs[i, v], products[row, other].sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gptj"])
def test_token_statistics_are_those_of_the_full_softmax(family: str, shape: str) -> None:
    rows = padded_rows()
    model = tiny_model(family)
    positions = response_positions(model, rows)
    unembedding = replace(unembedding_of(model, rows), shape=SHAPES[shape])
    tokens = PredictionErrors(unembedding, positions).tokens
    with torch.inference_mode():
        logits = model(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False
        ).logits
    logits, labels = logits[rows.mask], positions.labels[:, None]
    log_p = logits.log_softmax(-1)
    torch.testing.assert_close(tokens.nll, -log_p.gather(1, labels)[:, 0])
    torch.testing.assert_close(tokens.entropy, -(log_p.exp() * log_p).sum(1))
    rank = (logits > logits.gather(1, labels)).sum(1)
    torch.testing.assert_close(tokens.rank, rank.double())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_padding_side_does_not_matter(family: str) -> None:
    rows = padded_rows()
    model = tiny_model(family)
    right = response_positions(model, rows)
    parts = []
    width = rows.input_ids.shape[1]
    for row, length in enumerate(LENGTHS):  # the same rows padded on the left, with position ids
        ids = rows.input_ids[row : row + 1].roll(width - length, dims=1)
        attention = rows.attention_mask[row : row + 1].roll(width - length, dims=1)
        mask = rows.mask[row : row + 1].roll(width - length, dims=1)
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode(), capture_last_hidden(model) as captured:
            model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False)
        parts.append(ResponsePositions.from_batch(captured[0], ids.numpy(), mask.numpy()))
    left = ResponsePositions.concatenate(parts)
    unembedding = unembedding_of(model, rows)
    builder = ProfileBuilder(unembedding, ["all"])
    builder.add(right, ["all"] * len(LENGTHS), range(len(LENGTHS)))
    direction = builder.build().direction(Preconditioner())
    values = exact_values(unembedding, left, direction).rows.value
    expected = exact_values(unembedding, right, direction).rows
    assert ((values - expected.value).abs() <= 1e-5 * expected.norm * direction.norm).all()
