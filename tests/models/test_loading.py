"""Loading models: what is missing is said, adapters are merged exactly, no remote code runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import forvalue_dagster as fv
from forvalue_dagster.engine.fingerprint import fingerprint
from forvalue_dagster.models.loading import ModelLoadError, load_model
from forvalue_dagster.options.model import ModelConfig
from forvalue_dagster.options.valuation import ValuationOptions
from tests.tiny import CHATML, byte_tokenizer, tiny_model

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


def test_a_template_is_tried_when_the_model_is_loaded(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("X" + CHATML)
    by_path = load_model(ModelConfig(str(directory), chat_template=str(tmp_path / "chat.jinja")))
    by_text = load_model(ModelConfig(str(directory), chat_template="X" + CHATML))
    options = ValuationOptions()
    assert by_path.chat_template == "X" + CHATML
    assert fingerprint(by_path, options) == fingerprint(by_text, options)
    with pytest.raises(ModelLoadError, match="'chatml' is neither a Jinja template nor a file"):
        load_model(ModelConfig(str(directory), chat_template="chatml"))
    with pytest.raises(ModelLoadError, match="does not work: TemplateSyntaxError: unexpected end"):
        load_model(ModelConfig(str(directory), chat_template="{{ messages"))
    with pytest.raises(ModelLoadError, match="template_date is 'today'"):
        load_model(ModelConfig(str(directory), template_date="today"))


def test_the_day_decides_values_only_where_it_is_written(directory: Path) -> None:
    """And a template without calls, blocks or a date has the fingerprint that it always had."""
    options = ValuationOptions()
    dated = "{{ strftime_now('%d %b') }}" + CHATML
    for template, differs in ((CHATML, False), (dated, True)):
        days = [
            json.loads(
                fingerprint(
                    load_model(
                        ModelConfig(str(directory), chat_template=template, template_date=d)
                    ),
                    options,
                )
            )
            for d in ("2024-07-26", "2026-11-28")
        ]
        assert (days[0] != days[1]) == differs
        assert ("template date" in days[0]) == differs
        assert "response mask" not in days[0]
    for more in ("{{ messages[0].tool_calls }}", "{% generation %}{% endgeneration %}"):
        loaded = load_model(ModelConfig(str(directory), chat_template=more + CHATML))
        assert json.loads(fingerprint(loaded, options))["response mask"] == 2


def tokens_added(tokenizer: Any) -> Any:
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["<|call|>", "<|result|>"], special_tokens=True)
    larger.chat_template = "A" + CHATML
    return larger


def adapt_resized(directory: Path, target: Path, **options: Any) -> torch.nn.Module:
    """Save an adapter of a model with added tokens; return the adapted model, unmerged."""
    from transformers import AutoModelForCausalLM

    tokenizer = tokens_added(byte_tokenizer())
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer))
    config = peft.LoraConfig(
        r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False, **options
    )
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return adapted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}])
def test_an_adapter_with_added_tokens_brings_them(
    family: str, options: dict, tmp_path: Path
) -> None:
    directory = save(tmp_path / "model", family)
    adapted = adapt_resized(directory, tmp_path / "adapter", **options)
    loaded = load_model(ModelConfig(str(directory), adapter=str(tmp_path / "adapter")))
    ids = torch.tensor([[3, 5, 259, 260, 7]])
    with torch.inference_mode():
        expected = adapted(input_ids=ids).logits
        torch.testing.assert_close(
            loaded.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4
        )
    assert loaded.unembedding.vocabulary_size == len(loaded.tokenizer) == 261
    row = loaded.encoder("response").encode(
        json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "<|call|>"}])
    )
    assert 259 in row.input_ids.tolist()
    assert loaded.tokenizer.decode(row.input_ids[:1]) == "A"


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_whose_tokens_are_lost_is_refused(directory: Path, tmp_path: Path) -> None:
    adapt(directory, tmp_path / "adapter", target_modules=["q_proj"])
    tokens_added(byte_tokenizer()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        ModelLoadError, match="has 261 tokens, but the model has embeddings for 259"
    ):
        load_model(ModelConfig(str(directory), adapter=str(tmp_path / "adapter")))


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_another_model_is_refused(directory: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory)
    config.hidden_size, config.head_dim = 64, 16
    wider = AutoModelForCausalLM.from_config(config)
    lora = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])
    peft.get_peft_model(wider, lora).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelLoadError, match=r"(?s)size mismatch.*trained on this model"):
        load_model(ModelConfig(str(directory), adapter=str(tmp_path / "adapter")))


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_brings_its_template_and_leaves_the_rest(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    tiny_model("llama", torch.float32).save_pretrained(directory)
    byte_tokenizer(chat_template=None).save_pretrained(directory)
    adapt(directory, tmp_path / "adapter", target_modules=["q_proj"])
    byte_tokenizer("A" + CHATML).save_pretrained(tmp_path / "adapter")
    loaded = load_model(ModelConfig(str(directory), adapter=str(tmp_path / "adapter")))
    assert loaded.tokenizer.chat_template == "A" + CHATML


def test_a_token_that_the_model_has_not_skips_its_row(directory: Path) -> None:
    tokens_added(byte_tokenizer()).save_pretrained(directory)
    rows = [{"prompt": "1+1?", "response": "2."}, {"prompt": "<|call|>?", "response": "4."}]
    features = fv.sample_features(rows, model=ModelConfig(str(directory), device="cpu"))
    assert features["status"].to_list() == ["scored", "skipped"]
    assert features["reason"].to_list() == [None, "token_without_embedding"]
