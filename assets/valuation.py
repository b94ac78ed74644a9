"""The valuation pipeline of this project: a component, its options in valuation.yaml."""

from pathlib import Path

import dagster as dg

import forvalue_dagster as fv

DEMO_ROOT = Path(__file__).resolve().parents[1] / ".demo"
OPTIONS = Path(__file__).with_suffix(".yaml")
# That of the options, for finetunes that compare it with others.
POLICY = fv.Selection()


def demo_definitions(root: Path, valuation: fv.Valuation | None = None) -> dg.Definitions:
    """The whole graph over the demo's data, by default with the embedded model."""
    component = fv.ForValueComponent.resolve_from_yaml(
        OPTIONS.read_text("utf-8"),
        scope={"root": str(root), "valuation": valuation or fv.Valuation()},
    )
    return dg.build_defs_for_component(component)
