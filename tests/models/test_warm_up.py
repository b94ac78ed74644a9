"""Warming up: a real adapter, the same whatever interrupts it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import forvalue_dagster as fv
from forvalue_dagster.models.config import ModelConfig
from forvalue_dagster.models.loading import load_model
from forvalue_dagster.models.warm_up import WarmUpError, train_adapter
from tests.engine.test_functions import make_rows
from tests.tiny import byte_tokenizer, tiny_model

ROOT = Path(__file__).parents[2]
ROWS = fv.read_rows(make_rows(24, 3))
QUICK = fv.WarmUp(rank=4, learning_rate=5e-3, epochs=2, batch_rows=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    path = tmp_path_factory.mktemp("base")
    tiny_model("llama-tied", torch.float32).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return ModelConfig(str(path), local_files_only=True)


def weights(adapter: Path) -> bytes:
    return (adapter / "adapter_model.safetensors").read_bytes()


def test_the_rows_become_likelier_and_head_and_embeddings_stay(base, tmp_path: Path) -> None:
    lines: list[str] = []
    adapter, used = train_adapter(base, ROWS, "response", QUICK, tmp_path, lines.append)
    assert used == list(range(24))
    assert any("loss" in line for line in lines)
    before = fv.sample_features(ROWS, model=base)["nll"].mean()
    plain = load_model(base)
    head = plain.unembedding.weight.clone()
    embedded = plain.model.get_input_embeddings().weight.clone()
    warmed = load_model(ModelConfig(base.name, adapter=str(adapter), local_files_only=True))
    assert fv.sample_features(ROWS, model=warmed)["nll"].mean() < before - 0.3
    assert torch.equal(warmed.unembedding.weight, head)
    assert torch.equal(warmed.model.get_input_embeddings().weight, embedded)
    assert warmed.fingerprint.adapter is not None
    assert warmed.fingerprint.weights != plain.fingerprint.weights
    assert not (tmp_path / "checkpoints").exists()
    names = set(load_file(adapter / "adapter_model.safetensors"))
    assert not any("lm_head" in name or "embed" in name for name in names)


def test_a_finished_one_is_returned_at_once(base, tmp_path: Path) -> None:
    adapter, _ = train_adapter(base, ROWS[:4], "response", QUICK, tmp_path)
    first = weights(adapter)
    stamp = (adapter / "adapter_model.safetensors").stat().st_mtime_ns
    again, used = train_adapter(base, ROWS[:4], "response", QUICK, tmp_path)
    assert (again, used) == (adapter, [0, 1, 2, 3])
    assert weights(again) == first
    assert (adapter / "adapter_model.safetensors").stat().st_mtime_ns == stamp


def test_seeds(base, tmp_path: Path) -> None:
    made = [
        weights(train_adapter(base, ROWS[:8], "response", warm_up, tmp_path / name)[0])
        for name, warm_up in (
            ("a", QUICK),
            ("b", QUICK),
            ("c", fv.WarmUp(**(vars(QUICK) | {"seed": 1}))),
        )
    ]
    assert made[0] == made[1] != made[2]


def test_a_budget_of_tokens(base, tmp_path: Path) -> None:
    warm_up = fv.WarmUp(**(vars(QUICK) | {"max_tokens": 300}))
    _, used = train_adapter(base, ROWS, "response", warm_up, tmp_path)
    assert 1 <= len(used) < 12


WORKER = """
import sys, time
from pathlib import Path
import torch
from forvalue_dagster.models.config import ModelConfig
from forvalue_dagster.models.warm_up import train_adapter
from tests.models.test_warm_up import QUICK, ROWS
torch.set_num_threads(1)
def log(line):
    print(line, flush=True)
    if len(sys.argv) > 3:
        time.sleep(0.2)
base = ModelConfig(sys.argv[1], local_files_only=True)
train_adapter(base, ROWS, "response", QUICK, Path(sys.argv[2]), log)
"""


def test_kill_9_in_the_middle(base, tmp_path: Path) -> None:
    def command(folder: str, *more: str) -> list[str]:
        return [sys.executable, "-c", WORKER, base.name, str(tmp_path / folder), *more]

    process = subprocess.Popen(command("a", "slowly"), cwd=ROOT, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "a").glob("checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "a" / "adapter").exists()
    resumed = subprocess.run(command("a"), cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Going on from checkpoint-" in resumed.stdout
    subprocess.run(command("b"), cwd=ROOT, capture_output=True, check=True)
    left, right = (
        load_file(tmp_path / folder / "adapter" / "adapter_model.safetensors")
        for folder in ("a", "b")
    )
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_what_cannot_be_trained_is_said(base, tmp_path: Path) -> None:
    rows = fv.read_rows([{"prompt": "a", "response": ""}])
    with pytest.raises(WarmUpError, match="None of the 1 rows has tokens"):
        train_adapter(base, rows, "response", QUICK, tmp_path / "a")
    adapted = ModelConfig(base.name, adapter="somewhere")
    with pytest.raises(WarmUpError, match="has the adapter 'somewhere' already"):
        train_adapter(adapted, ROWS, "response", QUICK, tmp_path / "b")
    wild = fv.WarmUp(**(vars(QUICK) | {"learning_rate": 1e30}))
    with pytest.raises(WarmUpError, match=r"The loss is (nan|inf) at step \d+; lower"):
        train_adapter(base, ROWS, "response", wild, tmp_path / "c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be positive"),
        ({"epochs": -1}, "epochs must be positive"),
        ({"rows": "both"}, "expected 'validation' or 'training'"),
    ],
)
def test_meaningless_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fv.WarmUp(**options)


def test_the_adapter_names_no_path_of_this_machine(base, tmp_path: Path) -> None:
    adapter, _ = train_adapter(base, ROWS[:4], "response", QUICK, tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base.name
