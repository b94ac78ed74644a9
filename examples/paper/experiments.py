"""The experiments: data, configuration, measure, what the paper found, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from examples.paper import rows
from examples.paper.cost import SIZES, Work, gigabytes, hours
from examples.paper.measure import Figures, identified, selected

_LLAMA = "Llama-3.2-11B-Vision"
CONFIGURATIONS = Path(__file__).with_name("configurations")


@dataclass(frozen=True)
class Experiment:
    """A row of the paper's tables.

    Attributes:
        title: what is done.
        data: where the data are from.
        prepare: makes rows of them.
        measure: reads the figures from the graph's tables.
        expected: the paper's figures, by the names of `measure`, and others that a finetune of
            one's own would have to show.
        work: rows and tokens, for the estimate.
        found_with: the model of the paper's figures, where it is another than the configuration's.
    """

    title: str
    data: str
    prepare: rows.Prepare
    measure: Callable[[Path], Figures]
    expected: Mapping[str, float]
    work: Work
    found_with: str = ""


def _identification(title: str, task: str, auc: float, recall: float, tokens: int) -> Experiment:
    return Experiment(
        title,
        f"`datasets/{task}_*.hf` of github.com/ykwon0407/DataInf",
        rows.datainf(task),
        identified,
        {"AUC": auc, "recall": recall},
        Work(900, 100, tokens),
    )


EXPERIMENTS: Mapping[str, Experiment] = {
    "sentence_transformations": _identification(
        "Which of ten transformations", "grammars", 1.0, 0.989, 80
    ),
    "math_without_reasoning": _identification(
        "Which of ten word problems, answers only", "math_without_reason", 1.0, 1.0, 70
    ),
    "math_with_reasoning": _identification(
        "Which of ten word problems", "math_with_reason", 1.0, 0.998, 90
    ),
    "gsm8k_selection": Experiment(
        "The best 5 % of GSM8K",
        "`openai/gsm8k`, main",
        rows.gsm8k,
        selected,
        {"accuracy after finetuning on them": 0.483, "on all rows": 0.478},
        Work(7_000, 473, 250, 7_000, 8),
    ),
    "medical_selection": Experiment(
        "The best 10 % of noisy medical reasoning",
        "`FreedomIntelligence/medical-o1-reasoning-SFT`, en",
        rows.medical,
        selected,
        {"clean": 0.596, "clean in kept": 0.844, "mean of five sets after finetuning": 0.6235},
        Work(5_000, 5_000, 900, 5_000, 8),
    ),
    "pmc_selection": Experiment(
        "The best 20 % of reasoning about medical figures",
        "`UCSC-VLAA/MedVLThinker-pmc_vqa-gpt_4o_reasoning-tokenized`",
        rows.pmc,
        selected,
        {"MMMU, medical, after finetuning on them": 0.5412},
        Work(66_700, 500, 1_000),
    ),
    "cats_and_dogs": Experiment(
        "Half of the cats called dogs, and the reverse",
        "`microsoft/cats_vs_dogs`",
        rows.cats_and_dogs,
        identified,
        {"AUC": 0.995, "recall": 1.0},
        Work(800, 200, 370),
        _LLAMA,
    ),
    "subject": Experiment(
        "Which of thirty subjects",
        "`ImagenHub/DreamBooth_Concepts`",
        rows.subject,
        identified,
        {"AUC": 0.995, "recall": 0.985},
        Work(98, 60, 370),
        _LLAMA,
    ),
    "style": Experiment(
        "Which of three styles",
        "`kewu93/three_styles_prompted_250_512x512`",
        rows.style,
        identified,
        {"AUC": 0.974, "recall": 0.997},
        Work(600, 150, 400),
        _LLAMA,
    ),
}


def configuration(name: str) -> dict[str, Any]:
    """Return the component's attributes, as its YAML file has them."""
    text = (CONFIGURATIONS / f"{name}.yaml").read_text("utf-8")
    attributes: dict[str, Any] = yaml.safe_load(text)["attributes"]
    return attributes


def table() -> str:
    """Return the experiments as a table of the documentation."""
    lines = [
        "| experiment | data | model | the paper's figures | GPU memory | hours on an A100 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, experiment in EXPERIMENTS.items():
        model = configuration(name)["valuation"]["name"]
        size, work = SIZES[model], experiment.work
        other = f" ({experiment.found_with})" if experiment.found_with else ""
        figures = ", ".join(f"{what} {figure:g}" for what, figure in experiment.expected.items())
        spent = hours(size, work)
        said = "under 0.05" if spent < 0.05 else f"{spent:.1f}"
        lines.append(
            f"| `{name}`: {experiment.title} | {experiment.data} | `{model}` | {figures}{other} "
            f"| {gigabytes(size, work):.0f} GB | {said} |"
        )
    return "\n".join(lines) + "\n"
