"""A model whose logits are not a known function of its head is refused, never approximated."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from forvalue_dagster.valuation.unembedding import (
    Identity,
    Scale,
    SoftCap,
    UnknownUnembeddingError,
    capture_last_hidden,
    output_head,
    verified_unembedding,
)
from tests.tiny import tiny_model

IDS = torch.arange(3, 11)[None]
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def altered(change) -> LlamaForCausalLM:
    """A Llama that does something after its head which no configuration tells."""

    class Altered(LlamaForCausalLM):
        def forward(self, *args, **kwargs) -> CausalLMOutputWithPast:
            output = super().forward(*args, **kwargs)
            output.logits = change(output.logits)
            return output

    model = tiny_model("llama", torch.float32)
    model.__class__ = Altered
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z * 1.01,
        lambda z: 30 * torch.tanh(z / 30),
        lambda z: z.clamp(-50, 50),
        lambda z: z - z.mean(-1, keepdim=True),
        lambda z: z + 0.01,
    ],
    ids=["scale", "soft cap", "clamp", "centred", "shift"],
)
def test_unknown_transform_is_refused(change) -> None:
    model = altered(change)
    with pytest.raises(UnknownUnembeddingError, match="POST_HEAD_SETTINGS"):
        verified_unembedding(model, INPUTS)


def test_unaltered_model_is_accepted() -> None:
    model = altered(lambda z: z)
    assert verified_unembedding(model, INPUTS).transform == Identity()


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", Identity()),
        ("gemma2", SoftCap(3.0)),
        ("gemma3", Identity()),
        ("cohere", Scale(0.0625)),
        ("granite", Scale(0.125)),
        ("falcon-h1", Scale(0.04)),
        ("minicpm3", Identity()),  # its logits_scaling acts before the head
    ],
)
def test_the_models_own_logits_decide_the_transform(family: str, expected: object) -> None:
    assert verified_unembedding(tiny_model(family), INPUTS).transform == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_half_precision_is_verified_too(family: str, dtype: torch.dtype) -> None:
    expected = verified_unembedding(tiny_model(family), INPUTS).transform
    assert verified_unembedding(tiny_model(family, dtype), INPUTS).transform == expected


@pytest.mark.parametrize("transform", [SoftCap(3.0), Scale(0.5)], ids=repr)
def test_slope_is_the_derivative(transform) -> None:
    raw = torch.linspace(-8, 8, 33, dtype=torch.float64, requires_grad=True)
    logits = transform.apply(raw)
    (expected,) = torch.autograd.grad(logits.sum(), raw)
    torch.testing.assert_close(transform.slope(logits.detach()).expand_as(expected), expected)


def test_head_that_is_no_plain_layer_is_refused() -> None:
    model = tiny_model("llama")
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(UnknownUnembeddingError, match=r"gave Sequential; expected a torch\.nn"):
        output_head(model)


def test_the_head_never_sees_the_sequence() -> None:
    """No [B, T, V] logits are made while hidden states are captured, and the hook goes away."""
    model = tiny_model("llama")
    with torch.inference_mode():
        with capture_last_hidden(model) as captured:
            spared = model(**INPUTS, use_cache=False).logits
        full = model(**INPUTS, use_cache=False).logits
        from_hidden = model.lm_head(captured[0])
    assert spared.shape[1] == 1
    assert full.shape[1] == IDS.shape[1]
    assert captured[0].shape == (1, IDS.shape[1], 32)
    torch.testing.assert_close(from_hidden, full)
