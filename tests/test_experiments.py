"""The paper's experiments through their own code, on rows and models that are small and offline.

The datasets have the columns, splits and forms of the published ones; the models are tiny.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pytest

from examples.paper import rows as preparation
from examples.paper.__main__ import definitions_of, run
from examples.paper.experiments import EXPERIMENTS, configuration, table
from examples.paper.rows import Source
from tests.orchestration.conftest import save_trained_model
from tests.tiny_vision import picture, save_tiny_vision_model

ROOT = Path(__file__).parents[1]
IMAGES = ("pmc_selection", "cats_and_dogs", "subject", "style")
LETTERS = ("abcd", "efgh", "ijkl")


def words(kind: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list(LETTERS[kind]), 12))


def datainf(kinds: int, rows: int) -> list[dict[str, Any]]:
    made = []
    for kind in range(kinds):
        for row in range(rows):
            prompt, answer = f"{words(kind, row)} -> ", words(kind, rows + row)
            made.append(
                {"prompt": prompt, "text": f"{prompt}{answer}</s>", "variation": f"kind {kind}"}
            )
    return made


def published() -> dict[str, list[dict[str, Any]]]:
    """Rows by where they lie: hub id/configuration/split, or DataInf's folder."""
    image = {"bytes": picture(0), "path": None}
    found: dict[str, list[dict[str, Any]]] = {
        "openai/gsm8k/main/train": [
            {"question": words(0, n), "answer": words(0, 99 + n)} for n in range(24)
        ],
        "FreedomIntelligence/medical-o1-reasoning-SFT/en/train": [
            {"Question": words(0, n), "Complex_CoT": words(1, n), "Response": words(0, 99 + n)}
            for n in range(40)
        ],
        "UCSC-VLAA/MedVLThinker-pmc_vqa-gpt_4o_reasoning-tokenized/default/train": [
            {
                "images": [image],
                "question": words(0, n),
                "options": json.dumps({"A": "x", "B": "y"}),
                "answer_label": "B",
                "answer": "y",
                "reasoning": words(1, n),
            }
            for n in range(20)
        ],
        "microsoft/cats_vs_dogs/default/train": [
            {"image": {"bytes": picture(n), "path": None}, "labels": n % 2} for n in range(40)
        ],
        "ImagenHub/DreamBooth_Concepts/default/train": [
            {"image": {"bytes": picture(n), "path": None}, "subject": f"thing {n // 5}"}
            for n in range(20)
        ],
    }
    for task in ("grammars", "math_without_reason", "math_with_reason"):
        found[f"{task}_train.hf"], found[f"{task}_test.hf"] = datainf(3, 8), datainf(3, 3)
    for split, rows in (("train", 18), ("val", 6)):
        found[f"kewu93/three_styles_prompted_250_512x512/default/{split}"] = [
            {
                "image": {"bytes": picture(rows + n), "path": None},
                "text": words(n % 3, n),
                "style_class": f"style {n % 3}",
            }
            for n in range(rows)
        ]
    return found


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    for name, rows in published().items():
        made = datasets.Dataset.from_list(rows)
        if "image" in rows[0]:
            made = made.cast_column("image", datasets.Image())
        if "images" in rows[0]:
            made = made.cast_column("images", datasets.List(datasets.Image()))
        made.save_to_disk(str(folder / name))
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        False: save_trained_model(folder / "text"),
        True: save_tiny_vision_model(folder / "images", "llava"),
    }


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment(name: str, saved: Path, models: dict[bool, Path], tmp_path: Path) -> None:
    figures = run(name, tmp_path, Source(saved), str(models[name in IMAGES]))
    store = tmp_path / "data" / name / "forvalue"
    scores = pl.concat(map(pl.read_parquet, sorted((store / "value_scores").glob("*.parquet"))))
    assert scores["status"].unique().to_list() == ["scored"]
    validation = len(pl.read_parquet(store / "validation_data.parquet"))
    if "recall" in figures:
        pairs = pl.read_parquet(store / "validation_attribution.parquet")
        pairs = pairs.unique(["validation_row", "shard", "row"])
        # The ranking is of all training rows.
        assert len(pairs) == len(scores) * validation
        assert 0 <= figures["recall"] <= 1
        assert set(figures) <= set(EXPERIMENTS[name].expected)
    else:
        share = configuration(name)["selection"]["keep_fraction"]
        assert figures["rows"] == len(scores)
        assert figures["rows kept"] == math.ceil(share * len(scores))
    if name == "medical_selection":
        assert figures["clean"] == 0.6
    if name in ("sentence_transformations", "math_with_reasoning"):
        # The model has learnt some letters, and kinds of rows differ in theirs.
        assert figures["AUC"] > 0.9


def test_a_second_turn_with_fewer_rows(
    saved: Path, models: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the first turn is left in the second, which meets fewer shards and kinds."""
    monkeypatch.setattr(preparation, "SHARD_ROWS", 10)
    name, folder = "math_with_reasoning", tmp_path / "data" / "math_with_reasoning" / "train"
    run(name, tmp_path, Source(saved), str(models[False]))
    assert len(list(folder.glob("*.parquet"))) == 3
    figures = run(name, tmp_path, Source(saved, limit=8), str(models[False]))
    assert len(list(folder.glob("*.parquet"))) == 1
    assert figures["AUC"] > 0.9


def test_a_flipped_row_is_a_kind_of_its_own(saved: Path) -> None:
    prepared = EXPERIMENTS["cats_and_dogs"].prepare(Source(saved))
    rows = list(prepared.training)
    assert [row["kind"] for row in rows].count("flipped") == len(rows) // 2 == 16
    right = [row for row in rows if row["kind"] != "flipped"]
    assert all(row["response"] == f"It is a {row['kind']}" for row in right)
    assert all(row["kind"] in ("cat", "dog") for row in prepared.validation)


def test_a_dataset_in_no_hub_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ykwon0407/DataInf"):
        EXPERIMENTS["math_with_reasoning"].prepare(Source(tmp_path))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_configuration_is_a_components(name: str, tmp_path: Path) -> None:
    definitions = definitions_of(name, tmp_path)
    assert definitions.resources is not None
    assert "/" in definitions.resources["valuation"].name


def test_the_page_shows_the_experiments_as_they_are() -> None:
    page = (ROOT / "docs" / "experiments.md").read_text("utf-8")
    assert table() in page
    commands = re.findall(r"^python -m examples\.paper (.*)$", page, re.MULTILINE)
    assert commands
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "examples.paper", *command.split(), "--help"],
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0
