"""The valuation pipeline of this project."""

from pathlib import Path

import dagster as dg

import forvalue_dagster as fv

DEMO_ROOT = Path(__file__).resolve().parents[1] / ".demo"
# The policy that the comparison in docs/benchmarks.md chose: rows that point the same way as the
# validation rows, of those that the noise probe calls clean.
POLICY = fv.Selection(by="alignment", keep_fraction=0.5, max_noise_probability=0.5)


def demo_definitions(root: Path, valuation: fv.Valuation | None = None) -> dg.Definitions:
    """The whole graph over the demo's data, by default with the embedded model.

    A blocked shard is left out of the filtered dataset and named in its manifest.
    """
    return fv.valuation_definitions(
        training_rows=fv.RowSource(path=str(root / "data" / "train")),
        validation_rows=fv.RowSource(path=str(root / "data" / "validation.jsonl")),
        storage=fv.Storage(base_dir=str(root / "storage")),
        valuation=valuation,
        selection=fv.SelectionPolicy(
            by=POLICY.by,
            keep_fraction=POLICY.keep_fraction,
            max_noise_probability=POLICY.max_noise_probability,
        ),
        gate=fv.GatePolicy(max_noise_fraction=0.15, on_blocked_shard="exclude"),
    )
