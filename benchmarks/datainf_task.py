"""Influential-data identification: which training rows are of a validation row's kind.

    python -m benchmarks.datainf_task

For each validation row, the training rows of its kind should rank first: AUC over all training
rows, and recall among as many top rows as the kind has (90), averaged over validation rows, as in
DataInf (arXiv 2310.00902) and For-Value (arXiv 2508.10180). The paper's figures for math with
reasoning: Qwen2.5-1.5B 1.0 / .998.
"""

from __future__ import annotations

import time

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.harness import argument_parser, need, save
from forvalue_dagster import ModelConfig, pairwise_values, read_rows

TASK = "math_with_reason"
# The task's prompts end in "->" and the response follows on: one line of text, no chat.
ONE_LINE = (
    "{% for message in messages %}{{ message['content'] }}{% if not loop.last %} {% endif %}"
    "{% endfor %}"
)


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
    parser.add_argument("--dampings", type=float, nargs="*", default=[0.1])
    parser.add_argument(
        "--chat-template", default=ONE_LINE, help="a Jinja template; '' for the model's own"
    )
    parser.add_argument("--tokens", choices=["all", "response"], default="all")
    arguments = parser.parse_args()
    folder = need(arguments.data / "datainf")
    train = read_rows(folder / f"{TASK}_train.jsonl")
    train = train.gather_every(len(train) // arguments.rows)
    validation = read_rows(folder / f"{TASK}_validation.jsonl")
    kinds = [frame["variation"].to_numpy() for frame in (train, validation)]

    results = {}
    model = ModelConfig(chat_template=arguments.chat_template or None)
    metrics = [("none", 1.0), *(("activation", damping) for damping in arguments.dampings)]
    for preconditioner, damping in metrics:
        start = time.perf_counter()
        values = pairwise_values(
            train,
            validation,
            model=model,
            tokens=arguments.tokens,
            preconditioner=preconditioner,
            damping=damping,
        )
        name = preconditioner if preconditioner == "none" else f"{preconditioner} {damping}"
        results[name] = identification(values, *kinds)
        results[name]["seconds"] = round(time.perf_counter() - start, 1)
        print(name, results[name], flush=True)
    save(
        "datainf_task",
        {
            "task": TASK,
            "tokens": arguments.tokens,
            "chat_template": model.chat_template,
            "rows": len(train),
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
