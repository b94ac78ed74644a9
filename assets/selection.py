"""Is the selection worth it? Short finetunes on rows chosen in several ways, compared.

All arms of a comparison see the same number of rows, in the same number of optimiser steps, and
(within a few per cent) the same number of response tokens: else the longer rows would win. One
arm sees every row once, for reference.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

import forvalue_dagster as fv

Log = Callable[[str], object]

SELECTED = "selected"


@dataclass(frozen=True)
class Comparison:
    """How arms are compared.

    Attributes:
        rows: of every arm but the one that sees all.
        tolerance: by which the arms' response tokens may differ from the budget.
        recipe: of the finetunes; its seed is that of the comparison.
    """

    rows: int = 24
    tolerance: float = 0.03
    recipe: fv.WarmUp = field(default_factory=lambda: fv.WarmUp(learning_rate=1e-3, batch_rows=2))


def ranked(scores: pl.DataFrame, policy: fv.Selection) -> pl.DataFrame:
    """Return the scored rows that a policy may keep, best first."""
    allowed = scores.filter(pl.col("status") == "scored")
    if policy.max_noise_probability is not None:
        allowed = allowed.filter(pl.col("noise_probability") <= policy.max_noise_probability)
    return allowed.sort(policy.by, descending=True)


def matched(
    ranking: pl.DataFrame, rows: int, budget: float, tolerance: float, seed: int
) -> pl.DataFrame:
    """Draw rows of the beginning of a ranking whose response tokens meet a budget.

    The beginning is as short as it can be.

    Raises:
        ValueError: if no draw of all the rows meets the budget.
    """
    tokens = ranking["response_tokens"].to_numpy()
    rng = np.random.default_rng(seed)
    for width in range(rows, len(ranking) + 1):
        for _ in range(200):
            drawn = rng.choice(width, rows, replace=False)
            if abs(tokens[drawn].sum() - budget) <= tolerance * budget:
                return ranking[sorted(drawn.tolist())]
    raise ValueError(
        f"No {rows} of {len(ranking)} rows have about {budget:.0f} response tokens together; "
        "compare fewer rows."
    )


def arms(
    scores: pl.DataFrame, policies: Mapping[str, fv.Selection], comparison: Comparison, seed: int
) -> dict[str, pl.DataFrame]:
    """Return the rows of each arm: every policy, random rows twice, rows by loss, all rows."""
    scored = scores.filter(pl.col("status") == "scored")
    budget = comparison.rows * float(scored["response_tokens"].mean())  # type: ignore[arg-type]
    rankings = {name: ranked(scored, policy) for name, policy in policies.items()}
    rankings["lowest loss"] = scored.sort("nll")
    for offset, name in ((1000, "random"), (2000, "all, equal tokens")):
        rankings[name] = scored.sample(fraction=1.0, shuffle=True, seed=seed + offset)
    chosen = {
        name: matched(ranking, comparison.rows, budget, comparison.tolerance, seed)
        for name, ranking in rankings.items()
    }
    return chosen | {"all, one epoch": scored}


def held_out_loss(rows: pl.DataFrame, model: fv.ModelConfig) -> float:
    """Return the mean negative log-likelihood of the response tokens, nats."""
    table = fv.sample_features(rows, model=model).filter(pl.col("status") == "scored")
    tokens = table["response_tokens"]
    return float((table["nll"] * tokens).sum()) / float(tokens.sum())


def compare(
    rows: pl.DataFrame,
    chosen: Mapping[str, pl.DataFrame],
    held_out: pl.DataFrame,
    model: fv.ModelConfig,
    comparison: Comparison,
    seed: int,
    log: Log = print,
) -> pl.DataFrame:
    """Finetune the model once for each arm and measure the held-out loss.

    Args:
        rows: canonical rows, of which the arms name some by (shard, row).
        chosen: rows of each arm.
        held_out: canonical rows that nothing else has seen.
        model: without an adapter.
        comparison: how to train.
        seed: of the finetunes.
        log: told of each arm.
    """
    results = []
    for name, arm in chosen.items():
        subset = rows.join(arm.select("shard", "row"), on=["shard", "row"], how="semi")
        with tempfile.TemporaryDirectory() as folder:
            adapter, used = fv.train_adapter(
                model,
                subset,
                "response",
                comparison.recipe.model_copy(update={"seed": seed}),
                Path(folder),
            )
            loss = held_out_loss(held_out, model.model_copy(update={"adapter": str(adapter)}))
        results.append(
            {
                "seed": seed,
                "arm": name,
                "held_out_loss": loss,
                "rows": len(used),
                "response_tokens": int(arm["response_tokens"].sum()),
            }
        )
        log(f"seed {seed}, {name}: {len(used)} rows, held-out loss {loss:.4f}")
    return pl.DataFrame(results)


def differences(results: pl.DataFrame, arm: str = SELECTED) -> pl.DataFrame:
    """Return how much lower the loss of one arm is than that of each other, over seeds.

    The interval is Student's, 95 %, of the paired differences; above zero means that `arm` wins.
    """
    from scipy import stats  # a second to load

    own = results.filter(pl.col("arm") == arm).select("seed", own="held_out_loss")
    paired = results.filter(pl.col("arm") != arm).join(own, on="seed")
    table = (
        paired.with_columns(gain=pl.col("held_out_loss") - pl.col("own"))
        .group_by("arm", maintain_order=True)
        .agg(gain=pl.col("gain").mean(), spread=pl.col("gain").std(), seeds=pl.len())
    )
    half = stats.t.ppf(0.975, table["seeds"].to_numpy() - 1) * (
        table["spread"].to_numpy() / np.sqrt(table["seeds"].to_numpy())
    )
    return table.with_columns(
        lower=pl.Series(table["gain"].to_numpy() - half),
        upper=pl.Series(table["gain"].to_numpy() + half),
    ).drop("spread")
