"""Does a second pass over the responses alone help the noise probe? Over the pool's tables.

    python -m benchmarks.noise_unconditional

Two more statistics: the response's mean negative log-likelihood without its prompt, and the ratio
of that with the prompt to it. The same rows with and without them.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.harness import argument_parser, need, save
from benchmarks.noise_pool import POOL, TESTED, tables
from forvalue_dagster import ModelConfig
from forvalue_dagster.engine.forward import forward_pass
from forvalue_dagster.models.loading import load_model
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.valuation.columns import FORWARD_STATISTICS
from forvalue_dagster.valuation.noise import fit_probe, roc_auc

VALIDATION, DRAWS = 100, 20
NAMES = ("validation", "validation_copies", "training", "training_noise")


def joined(folder: Path, name: str) -> pl.DataFrame:
    """Return the statistics of a table's rows, and those of their responses alone."""
    columns = ["copy_of", "recipe", "status", *FORWARD_STATISTICS]
    key = ["copy_of", "recipe"]
    first = pl.read_parquet(need(folder / f"{name}.parquet"), columns=columns)
    second = pl.read_parquet(
        need(folder / f"{name}_without_prompt.parquet"), columns=[*key, "status", "nll"]
    )
    both = first.filter(pl.col("status") == "scored").join(
        second.filter(pl.col("status") == "scored").select(*key, alone="nll"), on=key
    )
    return both.with_columns(ratio=pl.col("nll") / pl.col("alone"))


def seconds(data: Path) -> tuple[float, float]:
    """Time the forward pass of 60 rows with their prompts, and of the responses alone."""
    loaded, rows = load_model(ModelConfig()), tables(data)
    spent = []
    for name in ("training", "training_without_prompt"):
        frame = rows[name].head(60)
        start = time.perf_counter()
        for _ in forward_pass(loaded, frame, ValuationOptions(), lambda passed: passed):
            pass
        spent.append(time.perf_counter() - start)
    return spent[0], spent[1]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--pool", type=Path, default=POOL)
    arguments = parser.parse_args()
    sides = {name: joined(arguments.pool, name) for name in NAMES}
    one = list(FORWARD_STATISTICS)
    told: dict[str, dict[str, list[float]]] = {"auc": {}, "swap": {}}
    for passes, columns in {"one pass": one, "two passes": [*one, "alone", "ratio"]}.items():
        told["auc"][passes], told["swap"][passes] = [], []
        numbers = {name: side.select(columns).to_numpy() for name, side in sides.items()}
        copies = sides["validation_copies"]
        for draw in range(DRAWS):
            rows = len(sides["validation"])
            chosen = np.sort(np.random.default_rng(draw).permutation(rows)[:VALIDATION])
            own = sides["validation"]["copy_of"].to_numpy()[chosen]
            table = np.full((len(chosen), len(TESTED), len(columns)), np.nan)
            for line, (row, recipe) in enumerate(copies.select("copy_of", "recipe").iter_rows()):
                place = np.flatnonzero(own == row)
                if len(place):
                    table[place[0], TESTED.index(recipe)] = numbers["validation_copies"][line]
            probe = fit_probe(numbers["validation"][chosen], table, TESTED, seed=draw)
            clean = probe.log_odds(numbers["training"])
            noisy = probe.log_odds(numbers["training_noise"])
            swapped = (sides["training_noise"]["recipe"] == "answer_swap").to_numpy()
            told["auc"][passes].append(roc_auc(clean, noisy))
            told["swap"][passes].append(roc_auc(clean, noisy[swapped]))
    first, second = seconds(arguments.data)
    save(
        "noise_unconditional",
        {
            "validation rows": VALIDATION,
            "draws": DRAWS,
            **{
                what: {passes: round(float(np.mean(values)), 4) for passes, values in by.items()}
                for what, by in told.items()
            },
            "seconds, second / first pass": round(second / first, 3),
        },
    )


if __name__ == "__main__":
    main()
