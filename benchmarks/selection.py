"""Is the selection worth it? GSM8K with 40 % of the answers damaged, the embedded model.

    python -m benchmarks.selection

For each seed other training rows, other damage, another finetune. Two development seeds choose
among policies; five test seeds use rows that the development never saw, the policy as chosen;
five more repeat the arms at equal tokens.
A finished seed is kept in the folder of the pool, so that a stopped run goes on.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from assets.selection import SELECTED, Comparison, arms, compare, differences
from benchmarks.harness import argument_parser, need, save
from benchmarks.noise_pool import POOL, TESTED
from benchmarks.passes import noisy_gsm8k
from forvalue_dagster import ModelConfig, Selection, read_rows, value_features
from forvalue_dagster.engine.features import feature_parts
from forvalue_dagster.engine.scoring import build_profile
from forvalue_dagster.models.loading import load_model
from forvalue_dagster.options.valuation import ValuationOptions

POLICIES = {
    "value": Selection(by="value", max_noise_probability=None),
    "value per token, behind the probe": Selection(by="value_per_token"),
    "alignment, behind the probe": Selection(),
}
DEVELOPMENT, TEST, MORE = (0, 1), (2, 3, 4, 5, 6), (7, 8, 9, 10, 11)
# The arms of further seeds, which only narrow the intervals that matter.
NARROWED = (SELECTED, "random", "all, equal tokens")
LONGEST = 450  # characters of question and answer: many short finetunes, not a few long ones


def short(path: Path, seed: int) -> pl.DataFrame:
    frame = read_rows(need(path))
    frame = frame.filter(pl.col("messages").str.len_chars() <= LONGEST + 60)
    return frame[np.random.default_rng(seed).permutation(len(frame)).tolist()]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--pool", type=Path, default=POOL)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--only-development", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.pool / "selection"
    folder.mkdir(parents=True, exist_ok=True)
    test = short(arguments.data / "gsm8k" / "test.jsonl", 5)
    validation, held_out = test[:60], test[60:100]
    training = short(arguments.data / "gsm8k" / "train.jsonl", 6)
    config, comparison = ModelConfig(), Comparison()
    profile, _ = build_profile(load_model(config), validation, ValuationOptions())
    print(f"probe: AUC {profile.noise.auc:.3f}", flush=True)  # type: ignore[union-attr]

    def run(
        seed: int, policies: dict[str, Selection], wanted: tuple[str, ...] | None
    ) -> pl.DataFrame:
        target = folder / f"{seed}-{len(policies)}.parquet"
        if not target.exists():
            own = training[seed * arguments.rows : (seed + 1) * arguments.rows]
            noisy, clean = noisy_gsm8k(own, 0.4, seed, TESTED)
            # The base model each time: an adapter of the last arm may be in memory.
            features = pl.concat(feature_parts(load_model(config), noisy, ValuationOptions()))
            scores = value_features(features, profile).with_columns(clean=pl.Series(clean))
            chosen = arms(scores, policies, comparison, seed)
            chosen = {k: v for k, v in chosen.items() if wanted is None or k in wanted}
            shares = {name: float(arm["clean"].mean()) for name, arm in chosen.items()}
            table = compare(noisy, chosen, held_out, config, comparison, seed, _say)
            table = table.with_columns(clean=pl.col("arm").replace_strict(shares))
            table.write_parquet(target)
        return pl.read_parquet(target)

    development = pl.concat(run(seed, POLICIES, tuple(POLICIES)) for seed in DEVELOPMENT)
    means = development.group_by("arm").agg(pl.col("held_out_loss").mean(), pl.col("clean").mean())
    best = min(means.to_dicts(), key=lambda record: record["held_out_loss"])["arm"]
    print(means, "chosen:", best, flush=True)
    if arguments.only_development:
        return
    policy = {SELECTED: POLICIES[best]}
    tested = pl.concat(
        [run(seed, policy, None) for seed in TEST] + [run(seed, policy, NARROWED) for seed in MORE]
    )
    # Two draws of one thing: their mean is the same arm with half the noise.
    random = tested.filter(pl.col("arm").is_in(NARROWED[1:]))
    both = random.group_by("seed", maintain_order=True).agg(
        pl.lit("random, mean of both draws").alias("arm"),
        pl.col("held_out_loss", "clean").mean(),
        pl.col("rows", "response_tokens").first(),
    )
    tested = pl.concat([tested, both.select(tested.columns)])
    by_arm = tested.group_by("arm", maintain_order=True).agg(
        pl.col("held_out_loss", "clean", "response_tokens").mean()
    )
    save(
        "selection",
        {
            "rows of a seed": arguments.rows,
            "comparison": asdict(comparison) | {"recipe": comparison.recipe.model_dump()},
            "base held-out loss": base_loss(held_out, config),
            "development": means.sort("held_out_loss").to_dicts(),
            "policy": best,
            "test arms": by_arm.to_dicts(),
            "gain of the selected rows": differences(tested).to_dicts(),
            "runs": json.loads(tested.write_json()),
        },
    )


def base_loss(held_out: pl.DataFrame, config: ModelConfig) -> float:
    from assets.selection import held_out_loss

    return held_out_loss(held_out, config)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
