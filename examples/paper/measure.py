"""What came out, in the paper's terms, from the tables that the graph wrote."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
from sklearn.metrics import roc_auc_score

Figures = dict[str, float]


def identified(store: Path) -> Figures:
    """AUC and recall of training rows of a validation row's kind, means over validation rows.

    Recall is among as many of the most valuable rows as the kind has. A validation row none or all
    of whose kind are training rows does not count. In a task with wrong labels the wrong rows are a
    kind of their own, so that only right rows of the class count as found.
    """
    training = pl.concat(
        pl.read_parquet(path, columns=["shard", "row", "kind"])
        for path in sorted((store / "raw_finetuning_data").glob("*.parquet"))
    )
    validation = pl.read_parquet(store / "validation_data.parquet").select(
        validation_row="row", wanted="kind"
    )
    pairs = (
        pl.read_parquet(store / "validation_attribution.parquet")
        .unique(["validation_row", "shard", "row"])
        .join(training, on=["shard", "row"])
        .join(validation, on="validation_row")
        .with_columns(same=pl.col("kind") == pl.col("wanted"))
        .sort("value", descending=True)
    )
    aucs, recalls = [], []
    for _, own in pairs.group_by("validation_row", maintain_order=True):
        if own["same"].n_unique() < 2:
            continue  # all of its kind, or none: nothing to tell apart
        aucs.append(float(roc_auc_score(own["same"], own["value"])))
        recalls.append(float(own["same"].head(int(own["same"].sum())).mean()))  # type: ignore[arg-type]
    return {"AUC": sum(aucs) / len(aucs), "recall": sum(recalls) / len(recalls)}


def selected(store: Path) -> Figures:
    """Rows kept, and the share of clean ones before and after, where it is known."""
    rows = json.loads((store / "filtered_dataset.manifest.json").read_text("utf-8"))["rows"]
    figures: Figures = {"rows": rows["in"], "rows kept": rows["kept"]}
    kept = pl.read_parquet(store / "filtered_dataset.parquet")
    if "clean" in kept.columns:
        dropped = pl.read_parquet(store / "dropped_rows.parquet")
        both = pl.concat([kept["clean"], dropped["clean"]])
        figures["clean"] = float(both.mean())  # type: ignore[arg-type]
        figures["clean in kept"] = float(kept["clean"].mean())  # type: ignore[arg-type]
    return figures
