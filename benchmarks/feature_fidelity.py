"""How faithful values from features are, and what refining costs.

    python -m benchmarks.feature_fidelity

GSM8K rows with 40 % noise, and the DataInf task with all tokens: Spearman correlation and overlap
of the top 10 % between values from features and exact values, plain and preconditioned; smaller
and larger forms beside the default; then refining at 10 % kept, with the band's rule as it is in
`Refine`, on three random halves of each data set.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import torch
from scipy.stats import spearmanr

from benchmarks.harness import argument_parser, need, save
from benchmarks.passes import ONE_LINE, features_of, gathered, noisy_gsm8k, profile_of
from forvalue_dagster import ModelConfig, Refine, Selection, read_rows
from forvalue_dagster.engine.refine import refine_scores
from forvalue_dagster.engine.selection import select_rows
from forvalue_dagster.models.loading import load_model
from forvalue_dagster.options.valuation import FeaturePrecision
from forvalue_dagster.valuation.feature_value import feature_values
from forvalue_dagster.valuation.features import TokenFeatures
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.value import RowValues, exact_values

METRICS = {
    "plain": Preconditioner("none"),
    "preconditioned": Preconditioner("activation", 0.1),
}
FORMS = {
    "top 4, int8": FeaturePrecision(4),
    "top 8, int8": FeaturePrecision(8),
    "top 16, int8": FeaturePrecision(16),
    "top 32, int8": FeaturePrecision(32),
    "top 16, float16": FeaturePrecision(16, "float16"),
    "top 64, float32": FeaturePrecision(64, "float32"),
}
DEFAULT = "top 16, int8"


def bytes_a_token(features: TokenFeatures) -> int:
    stored = features.to_tensors()
    stored.pop("lengths")
    return sum(t.element_size() * t.numel() for t in stored.values()) // len(features.scale)


def smaller_forms(features: TokenFeatures, hidden: torch.Tensor) -> dict[str, TokenFeatures]:
    """Forms that were tried and are not offered, emulated on float32 states."""

    def rounded(steps: int, outliers: int) -> torch.Tensor:
        dims = hidden.abs().topk(outliers, dim=1).indices
        rest = hidden.scatter(1, dims, 0.0)
        scale = rest.abs().amax(1, keepdim=True) / steps
        return ((rest / scale).round() * scale).scatter(1, dims, hidden.gather(1, dims))

    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(hidden.shape[1], hidden.shape[1]))[0][:, ::2]
    states = {
        "top 16, int8 without outliers": rounded(127, 0),
        "top 16, int4 with 8 outliers": rounded(7, 8),
        "top 16, random projection to half the width": 2 * (hidden @ turn) @ turn.T,
    }
    empty = features.outliers[:, :0]
    return {
        name: replace(
            features,
            hidden=state,
            scale=torch.ones_like(features.scale),
            outlier_dims=empty.to(torch.int16),
            outliers=empty,
        )
        for name, state in states.items()
    }


def overlap(left: np.ndarray, right: np.ndarray) -> float:
    count = max(1, round(len(left) / 10))
    best = [set(np.argsort(-side, kind="stable")[:count]) for side in (left, right)]
    return len(best[0] & best[1]) / count


def score_table(values: RowValues, features: TokenFeatures, source: str) -> pl.DataFrame:
    count = len(features.lengths)
    return pl.DataFrame(
        {
            "sample_id": [f"{row:05d}" for row in range(count)],
            "shard": "one",
            "row": range(count),
            "value": values.value.numpy(),
            "gradient_norm": values.norm.numpy(),
            "response_tokens": features.lengths,
            "status": "scored",
            "reason": pl.Series([None] * count, dtype=pl.String),
            "value_source": source,
        }
    )


def refined(near: pl.DataFrame, exact: pl.DataFrame, keep: float) -> dict[str, float | bool]:
    selection = Selection(by="value", keep_fraction=keep, max_noise_probability=None)

    def kept(table: pl.DataFrame) -> list[int]:
        decided = select_rows(table, selection)
        return decided.filter(pl.col("drop_reason").is_null())["row"].to_list()

    def rescore(lines: pl.DataFrame) -> pl.DataFrame:
        return lines.select("shard", "row").join(
            exact, on=["shard", "row"], how="left", maintain_order="left"
        )

    scores, outcome = refine_scores(near, selection, rescore, Refine())
    return {
        "equal before": kept(near) == kept(exact),
        "equal after": kept(scores) == kept(exact),
        "resolved": outcome.resolved,
        "forwarded share": round(outcome.refined / outcome.rows, 3),
    }


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    gsm, task = need(arguments.data / "gsm8k"), need(arguments.data / "datainf")
    train, _ = noisy_gsm8k(read_rows(gsm / "train.jsonl").head(300), 0.4, seed=7)
    sets = {
        "GSM8K": (None, "response", train, read_rows(gsm / "test.jsonl").head(80)),
        "DataInf task": (
            ONE_LINE,
            "all",
            read_rows(task / "math_with_reason_train.jsonl"),
            read_rows(task / "math_with_reason_validation.jsonl"),
        ),
    }
    fidelity: dict[str, dict] = {}
    refining: dict[str, dict] = {}
    for name, (template, tokens, training, validation) in sets.items():
        loaded = load_model(ModelConfig(chat_template=template))
        positions, _ = gathered(loaded, training, tokens)
        profile = profile_of(loaded.unembedding, gathered(loaded, validation, tokens)[0])
        forms = dict(
            zip(
                FORMS,
                features_of(loaded.unembedding, positions, list(FORMS.values())),
                strict=True,
            )
        )
        sizes = {form: bytes_a_token(kept) for form, kept in forms.items()}
        default = forms[DEFAULT]
        forms |= smaller_forms(default, positions.hidden)
        fidelity[name], refining[name] = {}, {}
        for metric, preconditioner in METRICS.items():
            direction = profile.direction(preconditioner)
            exact = exact_values(loaded.unembedding, positions, direction).rows
            truth = exact.value.numpy()
            for form, kept in forms.items():
                values = feature_values(kept, direction)
                result = {
                    "bytes": sizes.get(form),
                    "spearman": round(float(spearmanr(truth, values.value)[0]), 5),
                    "top_overlap": round(overlap(truth, values.value.numpy()), 3),
                }
                fidelity[name].setdefault(form, {})[metric] = result
                print(name, metric, form, result, flush=True)
            near = score_table(feature_values(default, direction), default, "features")
            full = score_table(exact, default, "exact")
            for seed in range(3):
                half = full.select(pl.int_range(pl.len()).shuffle(seed))[:, 0].head(len(full) // 2)
                outcome = refined(near[half.sort()], full[half.sort()], 0.1)
                refining[name].setdefault(metric, []).append(outcome)
                print(name, metric, "refine", outcome, flush=True)
    save("feature_fidelity", {"fidelity": fidelity, "refine at 10 %": refining})


if __name__ == "__main__":
    main()
