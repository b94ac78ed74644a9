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
        assert (all_clean.estimate, all_clean.lower) == (0, 0), seed
