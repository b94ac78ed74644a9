"""What a noise fraction must never do, on generated probes and sets of every shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from forvalue_dagster.valuation.noise import NoiseProbe
from forvalue_dagster.valuation.noise_fraction import NoiseFraction, noise_fraction, rows_needed

BATCHES, CASES = 20, 100  # 2,000 probes, each with sets of its own


def probe_of(clean: np.ndarray, copies: np.ndarray) -> NoiseProbe:
    names = tuple(f"recipe {place}" for place in range(copies.shape[1]))
    nothing = np.zeros((1 + len(names), 1))
    return NoiseProbe(names, nothing[0], nothing[0], nothing, nothing[:, 0], clean, copies)


def told(probe: NoiseProbe, rows: np.ndarray, replicates: int = 4) -> NoiseFraction:
    return noise_fraction(probe, rows, replicates=replicates)


@dataclass
class Case:
    """A probe of any spread, number of rows and recipes, overlap and luck; and a set."""

    probe: NoiseProbe
    rows: np.ndarray
    worst: float  # beyond every clean row and every copy
    best: float  # below all of them
    rng: np.random.Generator

    @classmethod
    def generated(cls, seed: int) -> Case:
        rng = np.random.default_rng(seed)
        spread = np.exp(rng.uniform(np.log(0.05), np.log(5)))
        count, recipes = int(rng.choice([2, 3, 5, 12, 40, 150, 300])), int(rng.integers(1, 9))
        clean = rng.normal(rng.uniform(-6, 0), spread, count)
        if rng.random() < 0.2:  # a validation row that is noise itself
            clean[0] = clean.max() + rng.uniform(1, 12)
        if rng.random() < 0.2:  # rows that are told alike
            clean = np.round(clean, 1)
        distance = rng.uniform(0.5, 12, recipes)
        copies = clean.mean() + distance + rng.normal(0, spread, (count, recipes))
        if rng.random() < 0.3:
            copies[rng.random(copies.shape) < 0.4] = np.nan
            copies[0] = clean.mean() + distance
        size = int(rng.choice([1, 2, 6, 20, 60, 200, 500]))
        noisy = rng.random(size) < rng.random()
        drawn = rng.normal(clean.mean(), spread, size)
        rows = np.where(noisy, drawn + rng.uniform(0, 12), drawn)
        everything = np.concatenate([clean, copies[np.isfinite(copies)]])
        worst, best = everything.max() + 0.5, clean.min() - 0.5
        return cls(probe_of(clean, copies), rows, worst, best, rng)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_more_noise_never_reads_as_less(batch: int) -> None:
    for seed in range(batch * CASES, (batch + 1) * CASES):
        case = Case.generated(seed)
        probe, rows, rng = case.probe, case.rows, case.rng
        first = told(probe, rows)
        assert 0 <= first.lower <= first.estimate <= first.upper <= 1, seed
        assert first.if_clean <= first.estimate <= first.if_noise, seed

        raised = rows + rng.exponential(3, len(rows)) * (rng.random(len(rows)) < 0.5)
        assert told(probe, raised).estimate >= first.estimate - 1e-9, seed
        beyond = np.full(rng.integers(1, 50), case.worst)
        assert told(probe, np.concatenate([rows, beyond])).estimate >= first.estimate - 1e-9, seed

        all_noise = told(probe, np.full(len(rows), case.worst))
        assert all_noise.estimate >= 0.95, seed
        assert all_noise.unexplained == 0, seed
        all_clean = told(probe, np.full(len(rows), case.best))
        assert all_clean.lower <= all_clean.estimate < 1e-9, seed


def separated(spread: float, rows: int = 150, recipes: int = 3) -> NoiseProbe:
    rng = np.random.default_rng(0)
    return probe_of(rng.normal(-4, spread, rows), rng.normal(4, spread, (rows, recipes)))


@pytest.mark.parametrize("spread", [0.05, 0.2, 0.5, 1.0])
def test_the_share_beyond_every_copy_is_found(spread: float) -> None:
    clean = np.random.default_rng(1).normal(-4, spread, 400)
    for noisy in (0, 20, 60, 200, 380):
        rows = np.concatenate([np.full(noisy, 20.0), clean[noisy:]])
        fraction = noise_fraction(separated(spread), rows)
        assert fraction.estimate == pytest.approx(noisy / 400, abs=0.02)
        assert fraction.lower <= noisy / 400 <= fraction.upper
        assert fraction.unexplained < 0.01


@pytest.mark.parametrize(("place", "noise"), [(1.5, 0.5), (-1.2, 0.0), (-12.0, 0.0)])
def test_rows_like_nothing_known_are_a_figure_of_their_own(place: float, noise: float) -> None:
    """Between clean rows and damage, or cleaner than any validation row."""
    clean = np.random.default_rng(1).normal(-4, 0.3, 100)
    fraction = noise_fraction(separated(0.3), np.concatenate([np.full(100, place), clean]))
    assert fraction.unexplained == 0.5
    assert fraction.estimate == pytest.approx(noise, abs=0.02)
    assert fraction.lower == 0
    assert fraction.if_clean == pytest.approx(0, abs=0.02)
    assert fraction.if_noise == pytest.approx(0.5, abs=0.02)
    assert fraction.upper > 0.5


def test_a_kind_milder_than_any_recipe_is_found_by_the_bound() -> None:
    """Noise that lies among the noisier half of the clean rows: no recipe does that."""
    rng = np.random.default_rng(0)
    probe = probe_of(rng.normal(-4, 1, 300), rng.normal(0, 1, (300, 2)))
    set_of = np.concatenate([rng.normal(-4, 1, 400), rng.normal(-2.8, 0.2, 600)])
    fraction = noise_fraction(probe, set_of)
    assert fraction.estimate > 0.3
    assert fraction.upper > 0.5


def test_few_validation_rows_say_little() -> None:
    """With three rows to compare with, an interval is far wider than with 300."""
    widths = []
    for count in (3, 300):
        rng = np.random.default_rng(0)
        told = [
            noise_fraction(
                probe_of(rng.normal(-1, 1, count), rng.normal(0.5, 1, (count, 2))),
                np.concatenate([rng.normal(-1, 1, 300), rng.normal(0.5, 1, 30)]),
            )
            for _ in range(10)
        ]
        widths.append(np.mean([fraction.upper - fraction.lower for fraction in told]))
    assert widths[0] > 1.5 * widths[1]


def test_one_poisoned_validation_row_hides_nothing() -> None:
    rng = np.random.default_rng(0)
    clean = rng.normal(-4, 0.3, 40)
    clean[0] = 6.0
    copies = rng.normal(6, 1, (40, 2))
    rows = np.concatenate([rng.normal(6, 1, 100), rng.normal(-4, 0.3, 100)])
    fraction = noise_fraction(probe_of(clean, copies), rows)
    assert fraction.lower > 0.3
    assert fraction.estimate == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_rows_cleaner_than_the_validation_rows_are_kept(seed: int) -> None:
    """Their excess among low ranks is not noise; the shards hold none that they could hold."""
    rng = np.random.default_rng(seed)
    probe = probe_of(rng.normal(-4, 1, 80), rng.normal(3, 2, (80, 2)))
    rows = rng.normal(-4.8, 1, 200)
    kept = (rng.random(200) < 0.5).astype(float)
    told = noise_fraction(probe, rows, kept)
    assert told.estimate == 0
    assert 3 / kept.sum() <= told.upper < 0.1
    # A fifth of it noise: at most two fifths of half of the rows, were all of it kept.
    rows[:40] = rng.normal(3, 1, 40)
    for chosen in (kept, (rows < -3).astype(float)):
        whole = noise_fraction(probe, rows)
        told = noise_fraction(probe, rows, chosen)
        assert told.estimate <= whole.estimate * 200 / chosen.sum()
        assert told.lower <= chosen[:40].sum() / chosen.sum() <= told.upper


def test_kept_rows_cannot_vouch_for_themselves() -> None:
    """The same noise as among all rows, however the rows kept were chosen by their log-odds."""
    rng = np.random.default_rng(0)
    clean = rng.normal(0, 1, 300)
    probe = probe_of(clean, clean[:, None] + rng.normal(3, 0.5, (300, 2)))
    rows = np.concatenate([rng.normal(0, 1, 1400), rng.normal(3, 1.1, 600)])
    noisy = np.arange(2000) >= 1400
    for kept in (rows < 9, rows <= 1.5, (rows <= 1.5) & (rng.random(2000) < 0.5), rows > 1):
        truth = noisy[kept].mean()
        told = noise_fraction(probe, rows, kept.astype(float))
        assert told.estimate == pytest.approx(truth, abs=0.06)
        assert told.lower <= truth <= told.upper
        assert told.rows == kept.sum()


def test_rows_needed_grow_as_the_limit_falls() -> None:
    assert [rows_needed(limit) for limit in (1.0, 0.15, 0.05, 0.0)] == [3, 20, 60, np.inf]
    clean = np.random.default_rng(0).normal(-4, 0.3, 20)
    assert noise_fraction(separated(0.3), clean).upper <= 0.15
    assert noise_fraction(separated(0.3), clean[:19]).upper > 0.15
