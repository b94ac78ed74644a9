"""Prepare the rows of an experiment, value them, and print its figures beside the paper's.

    python -m examples.paper cats_and_dogs --root work
    python -m examples.paper math_with_reasoning --root work --saved DataInf/datasets
    python -m examples.paper --table

The same runs inside a project of one's own: `--only-prepare` writes the rows to its folder `data`,
and examples/paper/configurations/<experiment>.yaml is the `defs.yaml` that reads them there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import dagster as dg
import yaml

import forvalue_dagster as fv
from examples.paper.experiments import EXPERIMENTS, configuration, table
from examples.paper.measure import Figures
from examples.paper.rows import Source

_PATHS = (("training_rows", "path"), ("validation_rows", "path"), ("storage", "base_dir"))


def definitions_of(name: str, root: Path, model: str | None = None) -> dg.Definitions:
    """Build the graph of an experiment's configuration, its paths below `root`."""
    attributes = configuration(name)
    for part, field in _PATHS:
        attributes[part][field] = str(root / attributes[part][field])
    if model is not None:
        attributes["valuation"]["name"] = model
        attributes["valuation"].pop("max_length", None)  # of the model that the file names
    component = fv.ForValueComponent.resolve_from_yaml(yaml.safe_dump(attributes))
    return dg.build_defs_for_component(component)


def run(name: str, root: Path, source: Source, model: str | None = None) -> Figures:
    """Prepare, value and measure."""
    EXPERIMENTS[name].prepare(source).write(root / "data" / name)
    definitions = definitions_of(name, root, model)
    shards = sorted(path.stem for path in (root / "data" / name / "train").glob("*.parquet"))
    # Nothing of another experiment, or of an earlier turn, counts as a shard of this one.
    with dg.DagsterInstance.local_temp() as instance:
        instance.add_dynamic_partitions("forvalue_shards", shards)
        _execute(definitions, "forvalue_profile", instance)
        for shard in shards:
            _execute(definitions, "forvalue_shard", instance, shard)
        _execute(definitions, "forvalue_filter", instance)
    return EXPERIMENTS[name].measure(root / "data" / name / "forvalue")


def _execute(
    definitions: dg.Definitions, job: str, instance: dg.DagsterInstance, shard: str | None = None
) -> None:
    definitions.resolve_job_def(job).execute_in_process(instance=instance, partition_key=shard)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", nargs="?", choices=EXPERIMENTS)
    parser.add_argument("--root", type=Path, default=Path("work"), help="where all is written")
    parser.add_argument("--saved", type=Path, help="folder of datasets, instead of the hub")
    parser.add_argument("--model", help="another than the configuration's")
    parser.add_argument("--limit", type=int, help="take at most so many rows of a split")
    parser.add_argument("--only-prepare", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the experiments and stop")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(), end="")
        return
    if arguments.experiment is None:
        parser.error("name an experiment")
    name, source = arguments.experiment, Source(arguments.saved, arguments.limit)
    if arguments.only_prepare:
        EXPERIMENTS[name].prepare(source).write(arguments.root / "data" / name)
        return
    figures = run(name, arguments.root, source, arguments.model)
    for what in dict.fromkeys([*figures, *EXPERIMENTS[name].expected]):
        here, paper = figures.get(what), EXPERIMENTS[name].expected.get(what)
        print(f"{what:36} here {_said(here):>8}   paper {_said(paper):>8}")


def _said(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.4g}"


if __name__ == "__main__":
    main()
