"""The valuation pipeline of this project."""

from pathlib import Path

import dagster as dg

import forvalue_dagster as fv

DEMO_ROOT = Path(__file__).resolve().parents[1] / ".demo"


def demo_definitions(root: Path) -> dg.Definitions:
    """The whole graph over the demo's data, with the embedded model.

    A blocked shard is left out of the filtered dataset and named in its manifest.
    """
    return fv.valuation_definitions(
        training_rows=fv.RowSource(path=str(root / "data" / "train")),
        validation_rows=fv.RowSource(path=str(root / "data" / "validation.jsonl")),
        storage=fv.Storage(base_dir=str(root / "storage")),
        selection=fv.SelectionPolicy(keep_fraction=0.5),
        gate=fv.GatePolicy(max_noise_share=0.15, on_blocked_shard="exclude"),
    )
