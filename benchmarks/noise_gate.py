"""Is the noise gate calibrated? Resamples the pool that `benchmarks.noise_pool` passed once.

    python -m benchmarks.noise_gate

GSM8K: validation rows are drawn from the test file, shards from the training file, each as clean
rows and damaged ones; a probe never sees a shard's rows. Everything is reported with the tested
recipes among those that the probe was fitted on, and with each left out. The DataInf task stands
in for another domain. Alignments are measured in the metric of all validation rows of the pool.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy import stats

from benchmarks.harness import argument_parser, need, save
from benchmarks.noise_pool import POOL, TESTED
from forvalue_dagster.data.recipes import NOISE_RECIPES
from forvalue_dagster.engine.feature_table import read_features, read_prompts
from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.feature_value import feature_pairs, feature_values
from forvalue_dagster.valuation.features import TokenFeatures
from forvalue_dagster.valuation.leave_one_out import leave_one_out
from forvalue_dagster.valuation.noise import NoiseProbe, fit_probe, roc_auc
from forvalue_dagster.valuation.noise_fraction import noise_fraction
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.profile import ValueDirection
from forvalue_dagster.valuation.prompt_space import fit_prompt_space, measure_shift
from forvalue_dagster.valuation.value import RowValues

LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6)
SHARD, VALIDATION, COPIES, LIMIT = 400, 150, 4, 0.15
VOCABULARY = 49_152


@dataclass(frozen=True)
class Side:
    """A table of the pool: statistics [N, F], pairs with all validation rows [N, M], norms [N]."""

    statistics: np.ndarray
    pairs: np.ndarray
    norms: np.ndarray
    prompts: np.ndarray
    copy_of: np.ndarray
    recipe: np.ndarray


class Pool:
    """Validation rows, copies of them, and other tables seen against them."""

    def __init__(self, folder: Path, prefix: str, others: dict[str, str]) -> None:
        validation = self._table(folder, f"{prefix}validation")
        self._features = read_features(validation)
        hidden = self._features.dequantised().double()
        moment = hidden.T @ hidden / len(hidden)
        metric = Preconditioner("activation", 0.1).metric(hidden.mean(dim=0), moment)
        nothing = torch.zeros(1, VOCABULARY, hidden.shape[1])
        self._metric = metric.to(nothing)
        # Only norms are taken from it.
        weights = torch.ones(1, dtype=torch.float64)
        self._direction = ValueDirection(("all",), weights, nothing, self._metric, 1.0)
        self.validation = self._side(folder, f"{prefix}validation")
        self.copies = self._side(folder, f"{prefix}validation_copies")
        self.others = {name: self._side(folder, table) for name, table in others.items()}

    @staticmethod
    def _table(folder: Path, name: str) -> pl.DataFrame:
        path = need(folder / f"{name}.parquet")
        return pl.read_parquet(path).filter(pl.col("status") == "scored")

    def _side(self, folder: Path, name: str) -> Side:
        table = self._table(folder, name)
        features: TokenFeatures = read_features(table)
        start = time.perf_counter()
        pairs = feature_pairs(features, self._features, self._metric)
        norms = feature_values(features, self._direction).norm
        print(f"{name}: pairs in {time.perf_counter() - start:.0f} s", flush=True)
        return Side(
            table.select(*FORWARD_STATISTICS).to_numpy(),
            pairs.numpy(),
            norms.numpy(),
            read_prompts(table).astype(np.float64),
            table["copy_of"].to_numpy(),
            table["recipe"].to_numpy(),
        )

    def aligned(self, side: Side, chosen: np.ndarray) -> np.ndarray:
        """Return the probe's columns of a table's rows, against the chosen validation rows."""
        total = self.validation.pairs[np.ix_(chosen, chosen)].sum()
        alignment = side.pairs[:, chosen].sum(axis=1) / (side.norms * np.sqrt(total))
        return np.column_stack([side.statistics, alignment])

    def fit(self, chosen: np.ndarray, recipes: list[str], seed: int) -> NoiseProbe:
        """Fit a probe on chosen validation rows, with drawn copies as the product draws them."""
        rows = len(chosen)
        inner = self.validation.pairs[np.ix_(chosen, chosen)]
        norm = float(np.sqrt(inner.sum())) / rows
        own_norms = self.validation.norms[chosen]
        owners_value = inner.sum(axis=1) / rows
        rng = np.random.default_rng(seed)
        table = np.full((rows, len(recipes), len(FORWARD_STATISTICS) + 1), np.nan)
        place = {
            (row, name): i
            for i, (row, name) in enumerate(
                zip(self.copies.copy_of, self.copies.recipe, strict=True)
            )
        }
        where, lines = [], []
        for index, row in enumerate(chosen.tolist()):
            available = [name for name in recipes if (row, name) in place]
            for name in rng.permutation(available)[:COPIES].tolist():
                where.append((index, recipes.index(name)))
                lines.append(place[row, name])
        owner = np.array([index for index, _ in where])

        def left_out(
            values: np.ndarray, norms: np.ndarray, own: np.ndarray, of: np.ndarray
        ) -> np.ndarray:
            def rows_of(value: np.ndarray, norm: np.ndarray) -> RowValues:
                value, norm = torch.tensor(value), torch.tensor(norm)
                return RowValues(value[:, None], value, norm, value)

            return leave_one_out(
                rows_of(values, norms),
                rows_of(owners_value[of], own_norms[of]),
                torch.tensor(own),
                torch.zeros(len(of), dtype=torch.int64),
                torch.tensor([rows]),
                norm,
            ).alignment.numpy()

        everyone = np.arange(rows)
        clean = left_out(owners_value, own_norms, np.diag(inner).copy(), everyone)
        pairs = self.copies.pairs[lines]
        damaged = left_out(
            pairs[:, chosen].sum(axis=1) / rows,
            self.copies.norms[lines],
            pairs[np.arange(len(lines)), chosen[owner]],
            owner,
        )
        table[tuple(np.array(where).T)] = np.column_stack([self.copies.statistics[lines], damaged])
        statistics = np.column_stack([self.validation.statistics[chosen], clean])
        return fit_probe(statistics, table, recipes, seed=seed)


def clopper_pearson(hits: int, trials: int) -> float:
    """Return the upper end of the 95 % interval of a share."""
    return float(stats.beta.ppf(0.975, hits + 1, trials - hits)) if hits < trials else 1.0


def trial(
    probe: NoiseProbe,
    clean: np.ndarray,
    noisy: np.ndarray,
    level: float,
    rng: np.random.Generator,
    seed: int,
) -> tuple[float, float, float]:
    count = round(SHARD * level)
    drawn = np.concatenate(
        [rng.choice(clean, SHARD - count, replace=False), rng.choice(noisy, count, replace=False)]
    )
    told = noise_fraction(probe, drawn, seed=seed)
    return told.estimate, told.lower, told.upper


def summary(trials: list[tuple[float, float, float]], level: float) -> dict[str, float]:
    table = np.array(trials)
    estimate, lower, upper = table.T
    return {
        "trials": len(table),
        "mean absolute error": round(float(np.abs(estimate - level).mean()), 4),
        "bias": round(float((estimate - level).mean()), 4),
        "coverage": round(float(((lower <= level) & (level <= upper)).mean()), 3),
        "mean width": round(float((upper - lower).mean()), 4),
    }


def calibration(pool: Pool, left: str | None, draws: int, repeats: int) -> dict:
    """Fit probes on drawn validation rows and judge drawn shards."""
    recipes = [name for name in NOISE_RECIPES if name != left]
    training, noise = pool.others["training"], pool.others["noise"]
    aucs, alone, top = [], [], []
    levels: dict[float, list] = {level: [] for level in (*LEVELS, 0.35)}
    for draw in range(draws):
        rng = np.random.default_rng(1000 + draw)
        chosen = np.sort(rng.permutation(len(pool.validation.norms))[:VALIDATION])
        probe = pool.fit(chosen, recipes, seed=draw)
        clean = probe.log_odds(pool.aligned(training, chosen))
        noisy = probe.log_odds(pool.aligned(noise, chosen))
        aucs.append(roc_auc(clean, noisy))
        alone.append({name: roc_auc(clean, noisy[noise.recipe == name]) for name in TESTED})
        shard = np.concatenate([rng.choice(clean, 240, False), rng.choice(noisy, 160, False)])
        top.append(float((np.argsort(shard)[:40] < 240).mean()))
        for level, told in levels.items():
            told += [trial(probe, clean, noisy, level, rng, draw) for _ in range(repeats)]
    result = {
        "auc, mix": round(float(np.mean(aucs)), 4),
        "auc by recipe": {n: round(float(np.mean([a[n] for a in alone])), 4) for n in TESTED},
        "clean share of the top 10 %": round(float(np.mean(top)), 4),
        "fraction": {str(level): summary(levels[level], level) for level in LEVELS},
    }
    for name, level, blocked in (("false blocks", 0.0, True), ("missed blocks", 0.35, False)):
        hits = sum((lower > LIMIT) == blocked for _, lower, _ in levels[level])
        trials = len(levels[level])
        result[name] = {
            "hits": int(hits),
            "trials": trials,
            "upper bound": round(clopper_pearson(int(hits), trials), 4),
        }
    print(left or "all fitted", result, flush=True)
    return result


def shifts(pool: Pool, repeats: int = 40) -> dict:
    """Measure the shift of shards of the same and of another domain, large and small."""
    result = {}
    for name in ("training", "noise", "foreign"):
        if name not in pool.others:
            continue
        for size in (20, 200):
            told = []
            for draw in range(repeats):
                rng = np.random.default_rng(draw)
                rows = rng.permutation(len(pool.validation.norms))[:VALIDATION]
                space = fit_prompt_space(pool.validation.prompts[rows])
                other = pool.others[name].prompts
                drawn = other[rng.permutation(len(other))[:size]]
                told.append(measure_shift(space.coordinates, space.project(drawn)))  # type: ignore[union-attr]
            result[f"{name}, {size} rows"] = {
                "mean auc": round(float(np.mean([shift.auc for shift in told])), 3),  # type: ignore[union-attr]
                "called shifted": round(float(np.mean([shift.lower > 0.7 for shift in told])), 3),  # type: ignore[union-attr]
            }
    print(result, flush=True)
    return result


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--pool", type=Path, default=POOL)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    others = {"training": "training", "noise": "training_noise"}
    foreign = (arguments.pool / "other_training.parquet").exists()
    gsm8k = Pool(arguments.pool, "", others | ({"foreign": "other_training"} if foreign else {}))
    draws, repeats = arguments.draws, arguments.repeats
    result = {"recipes fitted": calibration(gsm8k, None, draws, repeats)}
    result |= {f"without {name}": calibration(gsm8k, name, draws, repeats) for name in TESTED}
    result["shift against GSM8K"] = shifts(gsm8k)
    if foreign:
        other = Pool(
            arguments.pool,
            "other_",
            {"training": "other_training", "noise": "other_training_noise", "foreign": "training"},
        )
        result["shift against the DataInf task"] = shifts(other)
    save("noise_gate", result)


if __name__ == "__main__":
    main()
