"""Does value find clean rows? GSM8K with 40 % of the answers damaged, with and without a warm-up.

    python -m benchmarks.gsm8k_noise

Share of clean rows among the top 10 %, and ROC-AUC of clean against damaged, for each metric
(plain, preconditioned with several dampings, from the validation rows' second moment or that of
both sides pooled) and each score (value, value per token, alignment). The warm-up trains a LoRA
adapter for one epoch on the validation rows, or on the noisy training rows as the paper does.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.metrics import roc_auc_score

from benchmarks.harness import argument_parser, need, save
from benchmarks.passes import features_of, gathered, noisy_gsm8k, profile_of
from forvalue_dagster import ModelConfig, WarmUp, read_rows
from forvalue_dagster.models.loading import LoadedModel, load_model
from forvalue_dagster.models.warm_up import train_adapter
from forvalue_dagster.options.valuation import FeaturePrecision
from forvalue_dagster.valuation.feature_value import feature_values
from forvalue_dagster.valuation.preconditioner import Preconditioner

# Nearly exact, so that many metrics share one pass.
KEPT = FeaturePrecision(32, "float16")
METRICS = {"plain": Preconditioner("none"), "centred": Preconditioner("none", centre=True)} | {
    f"preconditioned, damping {damping}": Preconditioner("activation", damping)
    for damping in (0.01, 0.1, 1.0)
}


def measure(loaded: LoadedModel, train: pl.DataFrame, validation: pl.DataFrame) -> dict:
    training, frame = gathered(loaded, train)
    clean = frame["clean"].to_numpy()
    profile = profile_of(loaded.unembedding, gathered(loaded, validation)[0])
    (features,) = features_of(loaded.unembedding, training, [KEPT])
    hidden = training.hidden.double()
    shares = np.array([len(hidden), int(sum(profile.features.lengths))])  # type: ignore[union-attr]
    pooled = replace(
        profile,
        hidden_second_moment=(hidden.T @ hidden + shares[1] * profile.hidden_second_moment)
        / shares.sum(),
    )
    results = {}
    cases = {name: (profile, metric) for name, metric in METRICS.items()}
    cases["preconditioned, damping 0.1, pooled"] = (pooled, Preconditioner("activation", 0.1))
    for name, (source, preconditioner) in cases.items():
        values = feature_values(features, source.direction(preconditioner))
        value, tokens = values.value.numpy(), np.array(features.lengths)
        scores = {"value": value, "value_per_token": value / tokens}
        scores["alignment"] = values.alignment.numpy()
        results[name] = {
            score: {
                "auc": round(float(roc_auc_score(clean, column)), 3),
                "clean_in_top_10": round(
                    float(clean[np.argsort(-column)[: len(column) // 10]].mean()), 3
                ),
            }
            for score, column in scores.items()
        }
        print(name, results[name], flush=True)
    return results


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--validation-rows", type=int, default=64)
    parser.add_argument("--noise", type=float, default=0.4)
    arguments = parser.parse_args()
    folder = need(arguments.data / "gsm8k")
    source = read_rows(folder / "train.jsonl").head(arguments.rows)
    train, clean = noisy_gsm8k(source, arguments.noise, seed=11)
    validation = read_rows(folder / "test.jsonl").head(arguments.validation_rows)
    results, seconds = {}, {}
    for name, rows in (("none", None), ("on validation", validation), ("on noisy rows", train)):
        config = ModelConfig()
        if rows is not None:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as scratch:
                warm_up = WarmUp(max_tokens=12_000)
                adapter, _ = train_adapter(
                    config, rows, "response", warm_up, Path(scratch), lambda line: print(line)
                )
                seconds[name] = round(time.perf_counter() - start, 1)
                loaded = load_model(config.model_copy(update={"adapter": str(adapter)}))
        else:
            loaded = load_model(config)
        print("warm-up:", name, flush=True)
        results[name] = measure(loaded, train, validation)
    save(
        "gsm8k_noise",
        {
            "rows": [len(train), len(validation)],
            "clean share": round(float(clean.mean()), 3),
            "seconds of the warm-up": seconds,
            "results by warm-up": results,
        },
    )


if __name__ == "__main__":
    main()
