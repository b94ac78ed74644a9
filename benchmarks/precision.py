"""What lower precision of the forward pass does to scores, beside float32.

    python -m benchmarks.precision

Exact values of GSM8K rows; prediction errors and sums are float32 in every case.
"""

from __future__ import annotations

import time

import numpy as np
from scipy.stats import spearmanr

from benchmarks.feature_fidelity import overlap
from benchmarks.harness import argument_parser, need, save
from forvalue_dagster import ModelConfig, read_rows, value_dataset
from forvalue_dagster.models.loading import load_model


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16", "float16"])
    arguments = parser.parse_args()
    folder = need(arguments.data / "gsm8k")
    train = read_rows(folder / "train.jsonl").head(arguments.rows)
    validation = read_rows(folder / "test.jsonl").head(8)
    scores, seconds = {}, {}
    for dtype in ("float32", *arguments.dtypes):
        loaded = load_model(ModelConfig(dtype=dtype))  # type: ignore[arg-type]
        start = time.perf_counter()
        scores[dtype] = {
            kind: value_dataset(train, validation, model=loaded, preconditioner=kind)  # type: ignore[arg-type]
            for kind in ("none", "activation")
        }
        seconds[dtype] = round(time.perf_counter() - start, 1)
        print(dtype, seconds[dtype], flush=True)
    results: dict[str, dict] = {}
    for dtype in arguments.dtypes:
        for kind, truth in scores["float32"].items():
            lower = scores[dtype][kind]
            value, other = truth["value"].to_numpy(), lower["value"].to_numpy()
            # ‖G_i‖‖Ḡ‖, the scale of a value.
            scale = np.abs(value / truth["alignment"].to_numpy())
            results[f"{dtype}, preconditioner {kind}"] = {
                "spearman": round(float(spearmanr(value, other)[0]), 5),
                "top_overlap": overlap(value, other),
                "largest error, in norms": round(float((np.abs(value - other) / scale).max()), 5),
                "mean nll error": round(float((truth["nll"] - lower["nll"]).abs().mean()), 5),
            }
    save("precision", {"rows": len(train), "seconds, both metrics": seconds, "results": results})


if __name__ == "__main__":
    main()
