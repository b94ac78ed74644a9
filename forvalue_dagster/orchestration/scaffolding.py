"""The files that `dg scaffold defs forvalue_dagster.ForValueComponent` writes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from pydantic import BaseModel, Field

# Enough trusted rows for a reliable noise probe (see GatePolicy.min_probe_rows).
_EXAMPLES = 40


class ScaffoldOptions(BaseModel):
    """Options on the command line."""

    training_rows: str = Field(
        default="data/train", description="Folder or prefix whose data files are the shards."
    )
    validation_rows: str = Field(
        default="data/validation.jsonl", description="File or folder of trusted rows."
    )
    model: str = Field(default="embedded", description="Hub id, local directory, or 'embedded'.")


class ForValueScaffolder(dg.Scaffolder[ScaffoldOptions]):
    """Writes a component instance that loads, and example rows where there are none yet."""

    @classmethod
    def get_scaffold_params(cls) -> type[ScaffoldOptions]:
        """Return the options."""
        return ScaffoldOptions

    def scaffold(self, request: dg.ScaffoldRequest[ScaffoldOptions]) -> None:
        """Write defs.yaml, and example rows to paths that do not exist."""
        options = request.params or ScaffoldOptions()
        dg.scaffold_component(
            request,
            {
                "training_rows": {"path": options.training_rows},
                "validation_rows": {"path": options.validation_rows},
                "storage": {"base_dir": "data/forvalue"},
                "valuation": {"name": options.model},
                "selection": {"keep_fraction": 0.5},
                "gate": {"max_noise_fraction": 0.15, "on_blocked_shard": "exclude"},
            },
        )
        root = Path(request.project_root) if request.project_root else Path.cwd()
        write_examples(root, options.training_rows, options.validation_rows)


def write_examples(root: Path, training: str, validation: str) -> None:
    """Write example rows to paths that do not exist."""
    # Drawn at random: only small or only even numbers would be a different domain.
    numbers = random.Random(0).sample(range(10, 100), 2 * _EXAMPLES)
    _example(root, training, "example.jsonl", numbers[:_EXAMPLES])
    _example(root, validation, "", numbers[_EXAMPLES:])


def _example(root: Path, place: str, name: str, numbers: Sequence[int]) -> None:
    """Write a few rows, unless the path exists or is not local."""
    path = root / place
    if "://" in place or path.exists():
        return
    file = path / name if name else path
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        {"prompt": f"What is {n} plus {n + 3}?", "response": f"{n} plus {n + 3} is {2 * n + 3}."}
        for n in numbers
    )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
