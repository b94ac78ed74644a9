"""Influential-data identification: which training rows are of a validation row's kind.

    python -m benchmarks.datainf_task                     # all tokens
    python -m benchmarks.datainf_task --tokens response

For each validation row, the training rows of its kind should rank first: AUC over all training
rows, and recall among as many top rows as the kind has (90), averaged over validation rows, as in
DataInf (arXiv 2310.00902) and For-Value (arXiv 2508.10180). The paper's figures for math with
reasoning: Qwen2.5-1.5B 1.0 / .998. One forward pass serves every line; its seconds stand apart.
"""

from __future__ import annotations

import time

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.harness import argument_parser, need, peak_megabytes, save
from benchmarks.passes import ONE_LINE, features_of, gathered, profile_of
from forvalue_dagster import ModelConfig, read_rows
from forvalue_dagster.models.loading import load_model
from forvalue_dagster.options.valuation import FeaturePrecision
from forvalue_dagster.valuation.feature_value import feature_pairs
from forvalue_dagster.valuation.pairwise import pairwise_values
from forvalue_dagster.valuation.preconditioner import Preconditioner

TASK = "math_with_reason"


def identification(
    values: np.ndarray, train: np.ndarray, validation: np.ndarray
) -> dict[str, float]:
    aucs, recalls = [], []
    for column, kind in zip(values.T, validation, strict=True):
        same = train == kind
        aucs.append(roc_auc_score(same, column))
        top = np.argsort(-column, kind="stable")[: same.sum()]
        recalls.append(same[top].mean())
    return {"auc": round(float(np.mean(aucs)), 5), "recall": round(float(np.mean(recalls)), 4)}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=900)
    parser.add_argument("--dampings", type=float, nargs="*", default=[0.01, 0.1, 1.0])
    parser.add_argument(
        "--chat-template", default=ONE_LINE, help="a Jinja template; '' for the model's own"
    )
    parser.add_argument("--tokens", choices=["all", "response"], default="all")
    arguments = parser.parse_args()
    folder = need(arguments.data / "datainf")
    train = read_rows(folder / f"{TASK}_train.jsonl")
    train = train.gather_every(len(train) // arguments.rows)
    loaded = load_model(ModelConfig(chat_template=arguments.chat_template or None))
    start = time.perf_counter()
    training, train = gathered(loaded, train, arguments.tokens)
    validation, trusted = gathered(
        loaded, read_rows(folder / f"{TASK}_validation.jsonl"), arguments.tokens
    )
    forward = time.perf_counter() - start
    kinds = [frame["variation"].to_numpy() for frame in (train, trusted)]
    profile = profile_of(loaded.unembedding, validation)
    (features,) = features_of(loaded.unembedding, training, [FeaturePrecision()])
    metrics = {"plain": Preconditioner("none")} | {
        f"preconditioned, damping {damping}": Preconditioner("activation", damping)
        for damping in arguments.dampings
    }
    results = {}
    for name, preconditioner in metrics.items():
        metric = preconditioner.metric(profile.hidden_mean, profile.hidden_second_moment)
        metric = metric.to(training.hidden)
        # The exact pairs of the other dampings would cost minutes and say the same.
        offered = name in ("plain", "preconditioned, damping 0.1")
        for source in ("features", "exact") if offered else ("features",):
            start = time.perf_counter()
            if source == "exact":
                pairs = pairwise_values(loaded.unembedding, training, validation, metric)
            else:
                assert profile.features is not None
                pairs = feature_pairs(features, profile.features, metric)
            result = identification(pairs.numpy(), *kinds)
            result["seconds after the pass"] = round(time.perf_counter() - start, 1)
            results[f"{name}, {source}"] = result
            print(name, source, result, flush=True)
    save(
        f"datainf_task_{arguments.tokens}",
        {
            "task": TASK,
            "tokens": arguments.tokens,
            "chat_template": arguments.chat_template,
            "rows": [len(train), len(trusted)],
            "tokens scored": len(training.labels) + len(validation.labels),
            "seconds of the forward pass": round(forward, 1),
            "peak_megabytes": round(peak_megabytes()),
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
