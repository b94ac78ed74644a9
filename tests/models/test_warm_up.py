"""Warming up: a real adapter, the same whatever interrupts it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from peft.utils import save_and_load
from safetensors.torch import load_file
from transformers import Trainer

import forvalue_dagster as fv
from forvalue_dagster.data.chat import EncodedRow
from forvalue_dagster.models import loading
from forvalue_dagster.models.errors import WarmUpError
from forvalue_dagster.models.loading import load_model
from forvalue_dagster.models.training_loop import _collate
from forvalue_dagster.models.warm_up import train_adapter
from forvalue_dagster.options.model import ModelConfig
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


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in another order are other sums: what is compared exactly runs on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    _, used = train_adapter(base, ROWS, "response", warm_up, tmp_path / "a")
    assert 1 <= len(used) < 12
    tight = fv.WarmUp(**(vars(QUICK) | {"max_tokens": 5}))
    with pytest.raises(WarmUpError, match=r"max_tokens is 5, but a row drawn has \d+"):
        train_adapter(base, ROWS, "response", tight, tmp_path / "b")


def test_the_loss_is_on_the_tokens_that_are_scored() -> None:
    row = EncodedRow(np.array([5, 6, 7, 8]), np.array([False, True, False, False]), False)
    shorter = EncodedRow(np.array([5, 6]), np.array([True, False]), False)
    collated = _collate([row, shorter], frozenset())
    assert collated["labels"].tolist() == [[-100, -100, 7, -100], [-100, 6, -100, -100]]


def test_a_bfloat16_base_gets_a_float32_adapter(base, tmp_path: Path) -> None:
    half = ModelConfig(base.name, dtype="bfloat16", local_files_only=True)
    adapter, _ = train_adapter(half, ROWS[:4], "response", QUICK, tmp_path)
    kinds = {tensor.dtype for tensor in load_file(adapter / "adapter_model.safetensors").values()}
    assert kinds == {torch.float32}


def test_no_hub_is_asked_and_nothing_printed(base, tmp_path: Path, monkeypatch, capfd) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("peft asked the hub")

    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", asked)
    load_base = loading.load_base

    def from_the_hub(_: ModelConfig) -> tuple:
        model, tokenizer = load_base(base)
        model.name_or_path = "someone/model"
        return model, tokenizer

    monkeypatch.setattr(loading, "load_base", from_the_hub)
    hub = ModelConfig("someone/model", local_files_only=True)
    train_adapter(hub, ROWS[:4], "response", QUICK, tmp_path)
    assert capfd.readouterr().out == ""


WORKER = """
import sys, time
from pathlib import Path
import torch
from forvalue_dagster.options.model import ModelConfig
from forvalue_dagster.models.warm_up import train_adapter
from tests.models.test_warm_up import QUICK, ROWS
torch.set_num_threads(1)
def log(line):
    print(line, flush=True)
    time.sleep(0.2)
base = ModelConfig(sys.argv[1], local_files_only=True)
train_adapter(base, ROWS, "response", QUICK, Path(sys.argv[2]), log)
"""


@pytest.mark.faults
def test_kill_9_in_the_middle(base, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, base.name, str(tmp_path / "a")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "a").glob("checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "a" / "adapter").exists()
    lines: list[str] = []
    resumed, _ = train_adapter(base, ROWS, "response", QUICK, tmp_path / "a", lines.append)
    assert lines[0].startswith("Going on from checkpoint-")
    whole, _ = train_adapter(base, ROWS, "response", QUICK, tmp_path / "b")
    assert weights(resumed) == weights(whole)


def test_a_checkpoint_half_written_is_passed_over(base, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def die_at_8(line: str) -> None:
        if "step 8 " in line:
            raise KilledError

    folder = tmp_path / "a"
    with pytest.raises(KilledError):
        train_adapter(base, ROWS, "response", QUICK, folder, die_at_8)
    (whole,) = (folder / "checkpoints").iterdir()
    torn = folder / "checkpoints" / "checkpoint-9"
    torn.mkdir()
    content = (whole / "adapter_model.safetensors").read_bytes()
    (torn / "adapter_model.safetensors").write_bytes(content[:500])
    lines: list[str] = []
    adapter, _ = train_adapter(base, ROWS, "response", QUICK, folder, lines.append)
    assert lines[0] == f"Going on from {whole.name}."
    uninterrupted, _ = train_adapter(base, ROWS, "response", QUICK, tmp_path / "b")
    assert weights(adapter) == weights(uninterrupted)


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


def test_an_adapter_that_is_not_finite_is_never_saved(base, tmp_path: Path, monkeypatch) -> None:
    """Not even when it breaks after the last loss that is logged."""
    step, taken = Trainer.training_step, iter(range(1, 100))

    def broken(self, *args, **options):
        loss = step(self, *args, **options)
        return loss * float("nan") if next(taken) == 41 and poison(self.model) else loss

    def poison(model: torch.nn.Module) -> bool:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(float("nan"))
        return True

    monkeypatch.setattr(Trainer, "training_step", broken)
    rows = fv.read_rows(make_rows(41, 3))  # a loss is logged every second step
    single = fv.WarmUp(rank=2, batch_rows=1)
    with pytest.raises(WarmUpError, match="The adapter is not finite after the last step; lower"):
        train_adapter(base, rows, "response", single, tmp_path)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank\\n.*greater than 0"),
        ({"epochs": -1}, "epochs\\n.*greater than 0"),
        ({"rows": "both"}, "should be 'validation' or 'training'"),
    ],
)
def test_meaningless_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fv.WarmUp(**options)


def test_the_adapter_names_no_path_of_this_machine(base, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loading, "embedded_model_directory", lambda: Path(base.name))
    adapter, _ = train_adapter(ModelConfig(), ROWS[:4], "response", QUICK, tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "embedded"
    assert not [p.name for p in adapter.iterdir() if base.name.encode() in p.read_bytes()]
