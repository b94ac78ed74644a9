"""The noise probe and the noise fraction, on statistics whose distribution is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from forvalue_dagster.valuation.noise import (
    NoiseProbe,
    fit_probe,
    probabilities,
    roc_auc,
)
from forvalue_dagster.valuation.noise_fraction import noise_fraction

# Two kinds of damage, each in a direction of its own; the second lowers what the first raises.
RECIPES = ("up", "down")
SHIFTS = np.array([[4.0, 0.0, 0.0], [-2.0, 0.0, 5.0]])


def statistics(rng: np.random.Generator, rows: int, kind: int | None = None) -> np.ndarray:
    drawn = rng.standard_normal((rows, 3)) * [1, 1, 0.5]
    return drawn if kind is None else drawn + SHIFTS[kind]


def fitted(rows: int = 120, seed: int = 0, missing: bool = False) -> NoiseProbe:
    rng = np.random.default_rng(seed)
    clean = statistics(rng, rows)
    copies = clean[:, None] + SHIFTS + 0.3 * rng.standard_normal((rows, 2, 3))
    if missing:
        copies[rng.random((rows, 2)) < 0.4] = np.nan
    return fit_probe(clean, copies, RECIPES, seed=seed)


@pytest.mark.parametrize("missing", [False, True])
def test_the_probe_tells_damage_of_every_kind(missing: bool) -> None:
    probe, rng = fitted(missing=missing), np.random.default_rng(1)
    clean = probe.log_odds(statistics(rng, 500))
    for kind in (0, 1):
        assert roc_auc(clean, probe.log_odds(statistics(rng, 500, kind))) > 0.97
    assert probe.auc > 0.97
    assert set(probe.auc_by_recipe) == set(RECIPES)
    assert np.isnan(probe.copies).any() == missing


def test_the_reference_is_what_unseen_rows_get() -> None:
    """Judged by a model that saw it, a row of pure noise would look better than it is."""
    rng = np.random.default_rng(0)
    clean, copies = rng.standard_normal((60, 12)), rng.standard_normal((60, 3, 12))
    probe = fit_probe(clean, copies, ("a", "b", "c"))
    assert abs(probe.auc - 0.5) < 0.1
    everything = np.concatenate([clean, copies.reshape(-1, 12)])
    seen = probe.log_odds(everything)
    assert roc_auc(seen[:60], seen[60:]) > 0.6


def test_a_row_and_its_copies_are_never_on_both_sides() -> None:
    """Copies equal to their row are told apart only by a model that saw one of them."""
    rng = np.random.default_rng(0)
    clean = rng.standard_normal((80, 40))
    probe = fit_probe(clean, clean[:, None].copy(), ("none",))
    assert probe.auc == pytest.approx(0.5, abs=1e-9)


def test_the_order_of_recipes_and_the_scale_of_statistics_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    clean = statistics(rng, 50)
    copies = clean[:, None] + SHIFTS
    rows = statistics(rng, 20)
    scale = np.array([1.0, 1e3, 1e-3])
    told = fit_probe(clean, copies, RECIPES).log_odds(rows)
    scaled = fit_probe(clean * scale, copies * scale, RECIPES).log_odds(rows * scale)
    turned = fit_probe(clean, copies[:, ::-1], RECIPES[::-1]).log_odds(rows)
    np.testing.assert_allclose(scaled, told, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(turned, told, rtol=1e-3, atol=1e-3)


def test_wild_rows_count_as_the_wildest_seen() -> None:
    probe = fitted()
    wild = probe.log_odds(np.array([[1e9, 0.0, 0.0], [probe.high[0], 0.0, 0.0]]))
    assert wild[0] == wild[1]


def test_a_probe_is_stored_as_plain_numbers() -> None:
    probe = fitted(missing=True)
    arrays = probe.to_arrays()
    assert all(array.dtype == np.float64 for array in arrays.values())
    again = NoiseProbe.from_arrays(arrays, json.loads(json.dumps(probe.recipes)), probe.metric)
    rows = statistics(np.random.default_rng(0), 5)
    assert (again.log_odds(rows) == probe.log_odds(rows)).all()
    assert again.auc == probe.auc


def test_too_little_to_fit_on() -> None:
    with pytest.raises(ValueError, match="two validation rows"):
        fit_probe(np.zeros((1, 2)), np.zeros((1, 1, 2)), ("a",))
    with pytest.raises(ValueError, match="0 copies"):
        fit_probe(np.zeros((9, 2)), np.full((9, 1, 2), np.nan), ("a",))


def test_auc_is_the_usual_one() -> None:
    rng = np.random.default_rng(0)
    low, high = rng.integers(0, 9, 50).astype(float), rng.integers(2, 12, 70).astype(float)
    truth = np.repeat([0, 1], [50, 70])
    expected = roc_auc_score(truth, np.concatenate([low, high]))
    assert roc_auc(low, high) == pytest.approx(expected)
    assert np.isnan(roc_auc(low, high[:0]))


def test_probabilities_of_any_log_odds() -> None:
    assert probabilities(np.array([-1e9, 0.0, 1e9])).tolist() == pytest.approx([0.0, 0.5, 1.0])


def shard(rng: np.random.Generator, rows: int, noisy: int, kind: int | None = None) -> np.ndarray:
    kinds = [kind if kind is not None else index % 2 for index in range(noisy)]
    damaged = [statistics(rng, 1, one) for one in kinds]
    return np.concatenate([statistics(rng, rows - noisy), *damaged])


@pytest.mark.parametrize("level", [0.0, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("kind", [None, 0, 1])
def test_the_fraction_is_near_and_its_interval_covers(level: float, kind: int | None) -> None:
    errors, covered = [], 0
    for seed in range(8):
        probe, rng = fitted(seed=seed), np.random.default_rng(100 + seed)
        told = noise_fraction(probe, probe.log_odds(shard(rng, 200, round(200 * level), kind)))
        assert 0 <= told.lower <= told.estimate <= told.upper <= 1
        errors.append(abs(told.estimate - level))
        covered += told.lower <= level <= told.upper
    assert np.mean(errors) < 0.03
    assert covered >= 7


def test_a_small_shard_is_judged_with_a_wide_interval() -> None:
    probe, rng = fitted(), np.random.default_rng(0)
    small = noise_fraction(probe, probe.log_odds(shard(rng, 6, 2)))
    large = noise_fraction(probe, probe.log_odds(shard(rng, 600, 200)))
    assert small.upper - small.lower > 3 * (large.upper - large.lower)
    clean = noise_fraction(probe, probe.log_odds(statistics(rng, 6)))
    assert clean.lower == 0
    assert clean.upper >= 0.5  # six clean rows prove little


def test_the_order_of_rows_decides_nothing() -> None:
    probe, rng = fitted(), np.random.default_rng(0)
    log_odds = probe.log_odds(shard(rng, 100, 30))
    assert noise_fraction(probe, log_odds) == noise_fraction(probe, log_odds[::-1])
    with pytest.raises(ValueError, match="No rows"):
        noise_fraction(probe, log_odds[:0])


def test_a_recipe_that_cannot_be_told_does_not_count() -> None:
    rng = np.random.default_rng(0)
    clean = statistics(rng, 120)
    copies = clean[:, None] + np.array([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    probe = fit_probe(clean, copies, ("told", "not told"))
    assert probe.detectable.tolist() == [True, False]
    told = noise_fraction(probe, probe.log_odds(statistics(rng, 300)))
    assert told.estimate < 0.03
