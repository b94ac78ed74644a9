"""Token features: they converge to the exact method, and say by how much they miss it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr

from forvalue_dagster.options.valuation import FeaturePrecision
from forvalue_dagster.valuation import feature_value
from forvalue_dagster.valuation.feature_value import feature_pairs, feature_values
from forvalue_dagster.valuation.features import OUTLIERS, TokenFeatures, token_features
from forvalue_dagster.valuation.pairwise import pairwise_values
from forvalue_dagster.valuation.positions import ResponsePositions
from forvalue_dagster.valuation.preconditioner import Metric, Preconditioner
from forvalue_dagster.valuation.prediction_error import PredictionErrors
from forvalue_dagster.valuation.profile import ValidationProfile
from forvalue_dagster.valuation.profile_builder import ProfileBuilder
from forvalue_dagster.valuation.sweep_shape import SweepShape, wide
from forvalue_dagster.valuation.unembedding import Scale, SoftCap, Unembedding
from forvalue_dagster.valuation.value import exact_values

V, D = 1151, 12
LENGTHS = (6, 1, 19, 4, 30, 2, 8, 11)
EVERYTHING = FeaturePrecision(V, "float32")
SHAPES = {
    "blocked": SweepShape(tile=(8, 40), workspace=1),
    "blocked, held": SweepShape(tile=(8, 128), workspace=2**30),
    "wide": wide(2**30),
    "wide, in parts": wide(2**15),
}
METRICS = [
    Preconditioner("none"),
    Preconditioner("none", centre=True),
    Preconditioner("activation", 0.05),
    Preconditioner("activation", 0.05, centre=True),
]


def name_of(preconditioner: Preconditioner) -> str:
    return preconditioner.kind + (", centred" if preconditioner.centre else "")


def make(
    transform: object = None, lengths: tuple[int, ...] = LENGTHS, seed: int = 0
) -> tuple[Unembedding, ResponsePositions]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    unembedding = Unembedding(normal(V, D))
    if transform is not None:
        unembedding = replace(unembedding, transform=transform)
    count = sum(lengths)
    # One dimension dominates and the mean is not zero, as in real last hidden states.
    hidden = normal(count, D) + 0.5
    hidden[:, 3] *= 20
    labels = torch.randint(0, V, (count,), generator=generator)
    return unembedding, ResponsePositions(hidden, labels, lengths)


def profile_of(unembedding: Unembedding, seed: int = 5) -> ValidationProfile:
    _, validation = make(lengths=(5, 9, 7, 3), seed=seed)
    builder = ProfileBuilder(unembedding, ["a", "b"], keep=EVERYTHING)
    builder.add(validation, ["a", "b", "b", "a"], range(4))
    return builder.build()


def features_of(
    unembedding: Unembedding, positions: ResponsePositions, precision: FeaturePrecision
) -> TokenFeatures:
    errors = PredictionErrors(unembedding, positions, top=precision.top_errors)
    return token_features(errors, positions, precision)


def full_errors(unembedding: Unembedding, positions: ResponsePositions) -> torch.Tensor:
    return torch.cat([e for _, e in PredictionErrors(unembedding, positions).blocks()], dim=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 5, V, 10 * V])
@pytest.mark.parametrize("transform", [None, Scale(-0.3), SoftCap(4.0)], ids=repr)
def test_the_kept_errors_are_the_largest(transform: object, count: int, shape: str) -> None:
    unembedding, positions = make(transform)
    unembedding = replace(unembedding, shape=SHAPES[shape])
    tokens, kept = PredictionErrors(unembedding, positions, top=count).top()
    assert tokens.shape == (len(positions.labels), min(count, V))
    whole = full_errors(unembedding, positions)
    torch.testing.assert_close(kept, whole.gather(1, tokens))
    assert (tokens == positions.labels[:, None]).sum(1).eq(1).all()
    assert all(len(set(row)) == len(row) for row in tokens.tolist())
    # All but the label's place, which may have displaced the smallest.
    others = whole.scatter(1, positions.labels[:, None], 0.0).abs()
    threshold = others.topk(min(count, V))[0][:, -1]
    unlabelled = kept.abs()[tokens != positions.labels[:, None]]
    expected = threshold[:, None].expand_as(kept)[tokens != positions.labels[:, None]]
    assert (unlabelled >= expected - 1e-12).all()


@pytest.mark.parametrize("preconditioner", METRICS, ids=name_of)
@pytest.mark.parametrize("transform", [None, Scale(0.4), SoftCap(4.0)], ids=repr)
def test_complete_features_give_the_exact_values(
    transform: object, preconditioner: Preconditioner
) -> None:
    unembedding, positions = make(transform)
    direction = profile_of(unembedding).direction(preconditioner)
    exact = exact_values(unembedding, positions, direction).rows
    values = feature_values(features_of(unembedding, positions, EVERYTHING), direction)
    for name in ("groups", "value", "norm", "alignment"):
        scale = getattr(exact, name).abs().max()
        error = (getattr(values, name) - getattr(exact, name)).abs().max()
        assert error <= 1e-6 * scale, name


@pytest.mark.parametrize("preconditioner", METRICS, ids=name_of)
def test_centring_and_whitening_by_their_definition(preconditioner: Preconditioner) -> None:
    unembedding, positions = make()
    _, validation = make(lengths=(5, 9, 7, 3), seed=5)
    direction = profile_of(unembedding).direction(preconditioner)
    mean = validation.hidden.mean(0) if preconditioner.centre else torch.zeros(D).double()
    P = torch.eye(D, dtype=torch.float64)
    if preconditioner.kind == "activation":
        spread = validation.hidden - mean
        A = spread.T @ spread / len(spread)
        P = torch.linalg.inv(A + preconditioner.damping * A.trace() / D * P)

    def gradients(rows: ResponsePositions) -> torch.Tensor:
        errors = full_errors(unembedding, rows)
        return torch.stack([errors[r].T @ (rows.hidden[r] - mean) for r in rows.row_slices()])

    expected = torch.einsum(
        "nvd,vd->n", gradients(positions) @ P, gradients(validation).mean(dim=0)
    )
    values = exact_values(unembedding, positions, direction).rows.value
    torch.testing.assert_close(values, expected)


def test_errors_shrink_as_more_is_kept() -> None:
    unembedding, positions = make()
    direction = profile_of(unembedding).direction(Preconditioner("activation", 0.05))
    exact = exact_values(unembedding, positions, direction).rows

    def error(top: int, hidden: str) -> float:
        values = feature_values(
            features_of(unembedding, positions, FeaturePrecision(top, hidden)), direction
        )
        return float(((values.value - exact.value).abs() / (exact.norm * direction.norm)).max())

    by_count = [error(top, "float32") for top in (1, 4, 16, 64, V)]
    assert by_count == sorted(by_count, reverse=True)
    by_precision = [error(V, hidden) for hidden in ("int8", "float16", "float32")]
    assert by_precision == sorted(by_precision, reverse=True)
    assert by_precision[0] < 0.01
    assert by_precision[2] < 1e-6


def adversarial() -> dict[str, tuple[Unembedding, ResponsePositions]]:
    unembedding, positions = make()
    huge = positions.hidden.clone()
    huge[5] *= 1e6
    huge[9] = 0.0  # uniform predictions, no hidden state at all
    uniform = Unembedding(unembedding.weight * 1e-9)
    return {
        "one token each": make(lengths=(1,) * 12),
        "very long": make(lengths=(700, 2, 900)),
        "huge and vanishing states": (unembedding, replace(positions, hidden=huge)),
        "uniform predictions": (uniform, positions),
        "certain predictions": (Unembedding(unembedding.weight * 50), positions),
    }


@pytest.mark.parametrize("case", adversarial())
@pytest.mark.parametrize("hidden", ["int8", "float16"])
def test_fidelity_on_adversarial_rows(case: str, hidden: str) -> None:
    unembedding, positions = adversarial()[case]
    direction = profile_of(unembedding).direction(Preconditioner("activation", 0.1))
    exact = exact_values(unembedding, positions, direction).rows
    # Uniform predictions have no few largest entries: there everything must be kept.
    top = V if case == "uniform predictions" else 96
    features = features_of(unembedding, positions, FeaturePrecision(top, hidden))
    values = feature_values(features, direction)
    assert torch.isfinite(values.value).all()
    assert torch.isfinite(values.alignment).all()
    error = (values.value - exact.value).abs()
    assert (error <= 0.02 * exact.norm * direction.norm + 1e-12).all()
    if len(exact.value) > 5:
        assert spearmanr(exact.value, values.value)[0] > 0.98


def test_int8_rounds_by_half_a_step_and_keeps_outliers() -> None:
    _, positions = make()
    unembedding, _ = make()
    features = features_of(unembedding, positions, FeaturePrecision(4))
    assert features.outlier_dims.shape == (sum(LENGTHS), OUTLIERS)
    off = (features.dequantised(torch.float64) - positions.hidden).abs()
    assert (off <= features.scale[:, None].double() * 0.5001).all()
    at_outliers = off.gather(1, features.outlier_dims.long())
    assert (at_outliers <= 1e-6 * positions.hidden.abs().max()).all()


@pytest.mark.parametrize(("chunk", "lines"), [(1, 1), (10, 7), (40, 1024), (10_000, 50)])
def test_the_cut_changes_nothing(chunk: int, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    unembedding, positions = make()
    profile = profile_of(unembedding)
    direction = profile.direction(Preconditioner())
    features = features_of(unembedding, positions, FeaturePrecision(9))
    expected = feature_values(features, direction)
    pairs = feature_pairs(features, profile.features, direction.metric, torch.float64)
    monkeypatch.setattr(feature_value, "CHUNK_POSITIONS", chunk)
    monkeypatch.setattr(feature_value, "_LINES", lines)
    again = feature_values(features, direction)
    torch.testing.assert_close(again.groups, expected.groups)
    torch.testing.assert_close(again.norm, expected.norm)
    torch.testing.assert_close(
        feature_pairs(features, profile.features, direction.metric, torch.float64), pairs
    )


@pytest.mark.parametrize("preconditioner", METRICS, ids=name_of)
def test_pairs_from_complete_features_are_the_exact_pairs(preconditioner: Preconditioner) -> None:
    unembedding, positions = make()
    _, validation = make(lengths=(5, 9, 7, 3), seed=5)
    profile = profile_of(unembedding)
    metric = preconditioner.metric(profile.hidden_mean, profile.hidden_second_moment)
    exact = pairwise_values(unembedding, positions, validation, metric)
    features = features_of(unembedding, positions, EVERYTHING)
    pairs = feature_pairs(features, profile.features, metric, torch.float64)
    torch.testing.assert_close(pairs, exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


def test_values_are_the_mean_of_the_pairs_and_groups_add_up() -> None:
    unembedding, positions = make()
    profile = profile_of(unembedding)
    features = features_of(unembedding, positions, FeaturePrecision(7))
    direction = profile.direction(Preconditioner("none"))
    values = feature_values(features, direction)
    torch.testing.assert_close(values.value, values.groups @ direction.weights)
    # Complete on the validation side, so that both ways keep the same of each training row.
    pairs = feature_pairs(features, profile.features, Metric(), torch.float64)
    torch.testing.assert_close(values.value, pairs.mean(1), rtol=1e-5, atol=1e-5)
    for number, members in enumerate(([0, 3], [1, 2])):
        torch.testing.assert_close(
            values.groups[:, number], pairs[:, members].mean(1), rtol=1e-5, atol=1e-5
        )


def test_profiles_survive_storage() -> None:
    profile = profile_of(make()[0])
    again = ValidationProfile.from_tensors(*profile.to_tensors())
    assert again.features is not None
    assert again.features.lengths == (5, 9, 7, 3)
    assert torch.equal(again.features.errors, profile.features.errors)
    assert torch.equal(again.rows, torch.arange(4))
    assert torch.equal(again.errors, profile.errors)


@pytest.mark.parametrize("preconditioner", METRICS, ids=name_of)
def test_a_profile_is_spent_only_when_asked(preconditioner: Preconditioner) -> None:
    profile = profile_of(make()[0])
    before = profile.gradients.clone()
    direction = profile.direction(preconditioner)
    assert torch.equal(profile.gradients, before)
    spent = profile.direction(preconditioner, overwrite=True)
    assert torch.equal(spent.gradients, direction.gradients)
    assert spent.gradients.data_ptr() == profile.gradients.data_ptr()
    assert spent.norm == direction.norm


def test_meaningless_precisions() -> None:
    with pytest.raises(ValueError, match=r"top_errors\n.*greater than or equal to 1"):
        FeaturePrecision(0)
    with pytest.raises(ValueError, match="should be 'int8', 'float16' or 'float32'"):
        FeaturePrecision(hidden="int4")
