"""The main job as a stranger runs it, and its verdicts for other seeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from assets.demo import EXPECTED_TO_PASS
from assets.demo_data import write_demo_data
from forvalue_dagster.engine.functions import (
    sample_features,
    validation_profile,
    value_features,
)
from forvalue_dagster.models.loading import load_model
from forvalue_dagster.options.gate import GateRules
from forvalue_dagster.options.model import ModelConfig
from forvalue_dagster.quality.verdicts import judge_shard

ROOT = Path(__file__).parents[1]


@pytest.mark.model
def test_the_demo_blocks_the_noisy_shard(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "assets.demo", "--root", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The noisy shard was blocked, as it should be." in done.stdout
    assert "Rows: 300 in, 300 scored, 0 skipped, 100 kept, 200 dropped" in done.stdout
    assert set(pl.read_parquet(tmp_path / "storage" / "filtered_dataset.parquet")["shard"]) == {
        "clean",
        "mixed",
    }
    lines = (tmp_path / "storage" / "filtered_dataset.jsonl").read_text().splitlines()
    source = [(tmp_path / "data" / "train" / f"{s}.jsonl").read_text() for s in ("clean", "mixed")]
    assert len(lines) == 100
    assert set(lines) <= set("".join(source).splitlines())


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("seed", [101, 102, 103])
def test_verdicts_are_right_for_other_seeds(seed: int, tmp_path: Path) -> None:
    write_demo_data(tmp_path, seed=seed)
    loaded = load_model(ModelConfig())
    profile = validation_profile(tmp_path / "validation.jsonl", model=loaded)
    assert profile.noise is not None
    verdicts = {}
    for shard in EXPECTED_TO_PASS:
        features = sample_features(tmp_path / "train" / f"{shard}.jsonl", model=loaded)
        scores = value_features(features, profile)
        identity = profile.identity
        verdicts[shard] = judge_shard(
            shard, scores, profile.noise, profile.prompts, identity, GateRules()
        )
        print(seed, verdicts[shard].summary)
    assert {shard: verdict.passed for shard, verdict in verdicts.items()} == EXPECTED_TO_PASS


@pytest.mark.slow
@pytest.mark.model
def test_the_demo_on_images_blocks_the_shard_with_wrong_labels(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "assets.demo", "--images", "--root", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The noisy shard was blocked, as it should be." in done.stdout
    kept = pl.read_parquet(tmp_path / "storage" / "filtered_dataset.parquet")
    assert set(kept["shard"]) == {"clean"}
    assert kept["images"].list.len().to_list() == [1] * len(kept)
