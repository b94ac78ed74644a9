"""Loading models: what is missing is said, adapters are merged exactly, no remote code runs."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch

import forvalue_dagster as fv
from forvalue_dagster.models.config import ModelConfig
from forvalue_dagster.models.loading import ModelLoadError, load_model
from tests.tiny import byte_tokenizer, tiny_model

IDS = torch.arange(3, 20)[None]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save(tmp_path / "model", "llama-tied")


def save(path: Path, family: str) -> Path:
    tiny_model(family, torch.float32).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def test_a_local_directory(directory: Path) -> None:
    loaded = load_model(ModelConfig(str(directory), local_files_only=True))
    assert loaded.unembedding.vocabulary_size == 259
    assert loaded.max_length == 512
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert load_model(ModelConfig(str(directory), local_files_only=True)) is loaded


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float64", torch.float64), ("bfloat16", torch.bfloat16), ("auto", torch.float32)],
)
def test_dtype(directory: Path, name: str, dtype: torch.dtype) -> None:
    loaded = load_model(ModelConfig(str(directory), dtype=name, device="cpu"))
    assert loaded.unembedding.weight.dtype == dtype


def test_windows(directory: Path) -> None:
    assert load_model(ModelConfig(str(directory), max_length=100)).max_length == 100
    with pytest.raises(ModelLoadError, match="max_length is 1000, but the model's window is 512"):
        load_model(ModelConfig(str(directory), max_length=1000))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="Expected a hub id, a directory with"):
        load_model(ModelConfig(str(tmp_path / "nothing"), local_files_only=True))


def test_remote_code_does_not_run_unasked(directory: Path) -> None:
    """A model directory may name Python of its own; it is not imported."""
    import json

    config = json.loads((directory / "config.json").read_text())
    config["model_type"] = "homemade"
    config["auto_map"] = {
        "AutoConfig": "homemade.Config",
        "AutoModelForCausalLM": "homemade.Model",
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "homemade.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load_model(ModelConfig(str(directory), local_files_only=True))


def adapt(directory: Path, target: Path, **options) -> torch.nn.Module:
    """Save an adapter with random weights; return the adapted model, unmerged."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **options)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(target)
    return adapted.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["layers", "head", "saved head"],
)
def test_an_adapter_is_merged_exactly(family: str, options: dict, tmp_path: Path) -> None:
    directory = save(tmp_path / "model", family)
    adapted = adapt(directory, tmp_path / "adapter", **options)
    loaded = load_model(ModelConfig(str(directory), adapter=str(tmp_path / "adapter")))
    with torch.inference_mode():
        expected = adapted(input_ids=IDS).logits
        got = loaded.model(input_ids=IDS).logits
        base = tiny_model(family, torch.float32)(input_ids=IDS).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, base, atol=1e-2)


def test_adapters_that_cannot_be_merged(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"is no local directory.*Expected a PEFT adapter"):
        load_model(ModelConfig(str(directory), adapter="none/such", local_files_only=True))
    model = tiny_model("llama-tied", torch.float32)
    prefix = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(model, prefix).save_pretrained(tmp_path / "prompt")
    with pytest.raises(ModelLoadError, match="prepends virtual tokens, which cannot be merged"):
        load_model(ModelConfig(str(directory), adapter=str(tmp_path / "prompt")))


def test_int8_weights(directory: Path) -> None:
    """Through bitsandbytes, which also runs on a CPU; the head stays a plain layer."""
    rows = [{"prompt": "some words", "response": "and some more of them"}]
    plain, rounded = (
        fv.sample_features(
            rows, model=ModelConfig(str(directory), device="cpu", quantization=quantization)
        )
        for quantization in ("none", "int8")
    )
    assert abs(plain["nll"][0] - rounded["nll"][0]) < 0.05 * plain["nll"][0]
    assert plain["nll"][0] != rounded["nll"][0]
    assert plain["fingerprint"][0] != rounded["fingerprint"][0]


def test_int4_weights_need_a_gpu(directory: Path) -> None:
    with pytest.raises(ModelLoadError, match="expected a GPU"):
        load_model(ModelConfig(str(directory), device="cpu", quantization="int4"))


def test_a_model_spread_by_accelerate_values_alike(directory: Path) -> None:
    """Here over one device; what `device_map` changes is how weights come in and inputs move."""
    rows = [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(4)]
    values = [
        fv.value_dataset(
            rows, rows[:2], model=ModelConfig(str(directory), device=device), noise=None
        )["value"]
        for device in ("cpu", "balanced")
    ]
    assert values[0].equals(values[1])
