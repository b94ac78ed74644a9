"""Vision-language models: the same exactness, through the families' own processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import forvalue_dagster as fv
from forvalue_dagster.data.batching import batches, pad
from forvalue_dagster.data.chat import SkippedRow
from forvalue_dagster.data.images import decode_picture
from forvalue_dagster.engine.forward import pass_batch
from forvalue_dagster.engine.scoring import build_profile, score_rows
from forvalue_dagster.models.loading import LoadedModel, load_model, prepare_model
from forvalue_dagster.options.model import ModelConfig
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.valuation.pairwise import pairwise_values
from forvalue_dagster.valuation.positions import ResponsePositions
from tests.tiny import tiny_loaded
from tests.tiny_vision import (
    VISION_FAMILIES,
    picture,
    save_tiny_vision_model,
    tiny_vision_model,
)

ROWS: list[dict[str, Any]] = [
    {"prompt": "<image>\nWhat is it?", "response": "a cat", "image": picture(1)},
    {"prompt": "Hello", "response": "you there"},
    {"prompt": "<image> or <image>?", "response": "both", "images": [picture(2), picture(3, 80)]},
    {"prompt": "What colour?", "response": "a dark red", "image": picture(4, 28, 60)},
    {"prompt": "One more", "response": "no"},
    {"prompt": "What is it?", "response": "a dog, I think", "image": picture(5, 56, 28)},
]


def frame() -> pl.DataFrame:
    return fv.read_rows(ROWS)


def loaded(family: str, dtype: torch.dtype = torch.float64) -> LoadedModel:
    return prepare_model(*tiny_vision_model(family, dtype))


def encoded(model: LoadedModel, tokens: str = "response") -> list[Any]:
    encoder = model.encoder(tokens)
    return [encoder.encode(m, None, i) for m, i in frame().select("messages", "images").iter_rows()]


def in_parts(messages: str) -> list[dict[str, Any]]:
    """A conversation with every content as parts, as processors' templates expect it."""
    return [
        message
        if isinstance(message["content"], list)
        else message | {"content": [{"type": "text", "text": message["content"]}]}
        for message in json.loads(messages)
    ]


def slow_mask(processor: Any, conversation: list[dict[str, Any]], images: list[Any]) -> set[int]:
    """The response's tokens, turn by turn: what each turn adds to the tokens before it."""

    def ids(turns: int, prompt: bool) -> list[int]:
        text = processor.apply_chat_template(conversation[:turns], add_generation_prompt=prompt)
        shown = images[
            : sum(p["type"] == "image" for m in conversation[:turns] for p in m["content"])
        ]
        out = processor(text=[text], images=[shown] if shown else None, return_tensors="pt")
        return out["input_ids"][0].tolist()

    found: set[int] = set()
    for turn, message in enumerate(conversation):
        if message["role"] == "assistant":
            before, after = ids(turn, True), ids(turn + 1, False)
            assert after[: len(before)] == before
            # The template ends the turn with a line break after its special token.
            found |= set(range(len(before), len(after) - 1))
    return found


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_response_masks_are_those_of_tokenising_turn_by_turn(family: str) -> None:
    import io

    from PIL import Image

    model = loaded(family)
    turns = [
        {"role": "user", "content": "<image>\nWhat?"},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "And <image> or <image>?"},
        {"role": "assistant", "content": "two dögs"},
    ]
    pictures = [picture(1), picture(2, 80, 30), picture(3, 28, 28)]
    rows = fv.read_rows([{"messages": turns, "images": pictures}])
    row = model.encoder("response").encode(rows["messages"][0], None, pictures)
    parts = in_parts(rows["messages"][0])
    shown = [Image.open(io.BytesIO(data)) for data in pictures]
    expected = slow_mask(model.processor, parts, shown)
    assert {int(place) + 1 for place in row.mask.nonzero()[0]} == expected
    # The same row, every token scored: no image token is a label.
    whole = model.encoder("all").encode(rows["messages"][0], None, pictures)
    labels = whole.input_ids[1:][whole.mask[:-1]]
    assert not set(labels.tolist()) & set(model.processor.image_token_ids)
    assert labels.max() < model.unembedding.vocabulary_size


def autograd_gradients(model: LoadedModel, rows: list[Any]) -> list[Tensor]:
    """G_i by backpropagation through the model's own logits, each row alone, the head untied."""
    network: Any = model.model
    head = network.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    gradients = []
    for index in range(len(rows)):
        batch = pad(rows, [index], model.encoder("response").row_aligned)
        inputs = {name: torch.as_tensor(values) for name, values in batch.inputs.items()}
        inputs = {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}
        ids = torch.as_tensor(batch.input_ids)
        logits = network(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs
        ).logits
        mask = torch.as_tensor(batch.mask)[0, :-1]
        likelihood = logits[0, :-1][mask].log_softmax(-1).gather(1, ids[0, 1:][mask][:, None]).sum()
        gradients.append(torch.autograd.grad(likelihood, head.weight)[0])
    return gradients


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_values_are_those_of_autograd_whatever_the_batch(family: str) -> None:
    model = loaded(family)
    rows = encoded(model)
    assert not [row for row in rows if not hasattr(row, "mask")]
    aligned = model.encoder("response").row_aligned
    mixed = list(batches(rows, 10_000, row_aligned=aligned))
    assert len(mixed) == 1 + 2 * (family == "mllama")
    passed = [pass_batch(model, batch).positions for batch in mixed]
    order = [index for batch in mixed for index in batch.rows]
    together = ResponsePositions.concatenate(passed)
    pairs = pairwise_values(model.unembedding, together, together)
    pairs = pairs[torch.tensor(order).argsort()][:, torch.tensor(order).argsort()]
    G = autograd_gradients(model, rows)
    for i, one in enumerate(G):
        for v, other in enumerate(G):
            # Text towers normalise in float32 even in a float64 model: padding moves the last bits.
            bound = 1e-5 * one.norm() * other.norm()
            assert abs(pairs[i, v] - (one * other).sum()) <= bound
    for i in range(len(rows)):
        positions = pass_batch(model, pad(rows, [i], aligned)).positions
        value = pairwise_values(model.unembedding, positions, positions)[0, 0]
        assert abs(value - G[i].square().sum()) <= 1e-9 * G[i].square().sum()


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_the_image_is_seen(family: str) -> None:
    """Another image gives another value; the same image at another place the same."""
    model = loaded(family)
    rows = [ROWS[0], ROWS[0] | {"image": picture(9)}, ROWS[0]]
    options = ValuationOptions(noise=None)
    profile, _ = build_profile(model, frame(), options)
    values = score_rows(model, fv.read_rows(rows), profile, options)["value"]
    assert values[0] == pytest.approx(values[2], rel=1e-6)
    assert abs(values[0] - values[1]) > 1e-6 * abs(values[0])


@pytest.mark.parametrize("family", ["llava-next", "idefics3", "mllama"])
def test_batches_windows_and_workers_change_nothing(family: str) -> None:
    model = loaded(family)
    options = ValuationOptions(noise=None)
    profile, _ = build_profile(model, frame(), options)
    expected = score_rows(model, frame(), profile, options)
    for other in (
        options.model_copy(update={"batch_tokens": 1}),
        options.model_copy(update={"batch_image_mb": 0.01, "image_workers": 1}),
        options.model_copy(update={"window_rows": 2, "image_workers": 3}),
        options.model_copy(update={"remembered_images": 4, "image_workers": 0}),
    ):
        again = score_rows(model, frame(), profile, other)
        error = (again["value"] - expected["value"]).abs() / expected["gradient_norm"]
        assert error.max() < 1e-4
        assert again["status"].to_list() == ["scored"] * 6


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_rows_are_put_together_as_the_processor_does(family: str) -> None:
    """Where a family's processor pads a batch itself, the model says the same of its batch."""
    model = loaded(family)
    own = [0, 3, 5]  # rows with one image each
    rows = encoded(model)
    batch = pad(rows, own, model.encoder("response").row_aligned)
    conversations = [in_parts(frame()["messages"][index]) for index in own]
    texts = [model.processor.apply_chat_template(one) for one in conversations]
    pictures = [[decode_picture(frame()["images"][index][0])] for index in own]
    theirs = model.processor(
        text=texts, images=pictures, padding=True, padding_side="right", return_tensors="pt"
    )
    ours = {name: torch.as_tensor(values) for name, values in batch.inputs.items()}
    ours |= {"input_ids": torch.as_tensor(batch.input_ids)}
    network: Any = model.model
    mask = torch.as_tensor(batch.mask)
    logits = []
    for inputs in (ours, dict(theirs)):
        inputs = {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}
        inputs["attention_mask"] = torch.as_tensor(batch.attention_mask)
        with torch.inference_mode():
            logits.append(network(use_cache=False, **inputs).logits[mask])
    torch.testing.assert_close(*logits, rtol=1e-6, atol=1e-6)


def test_images_that_come_again_are_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("idefics3")
    prepared = []
    real = type(model.processor.image_processor).__call__

    def counted(self: Any, images: Any, **options: Any) -> Any:
        prepared.append(images)
        return real(self, images, **options)

    monkeypatch.setattr(type(model.processor.image_processor), "__call__", counted)
    rows = [ROWS[0], ROWS[2], ROWS[0] | {"response": "a dog"}, ROWS[1], ROWS[0]]
    table = fv.read_rows(rows)
    counts = []
    encodings = []
    for remembered in (0, 1, 2):
        encoder = model.encoder("response", remembered)
        prepared.clear()
        columns = table.select("messages", "images").iter_rows()
        encodings.append([encoder.encode(m, None, images) for m, images in columns])
        counts.append(len(prepared))
    assert counts == [4, 3, 2]
    for row, again in zip(encodings[0], encodings[2], strict=True):
        assert row.inputs.keys() == again.inputs.keys()
        for name in row.inputs:
            np.testing.assert_array_equal(row.inputs[name], again.inputs[name])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "What?", "response": "a", "image": picture(1)[:50]}, "image_unreadable"),
        ({"prompt": "What is <image>?", "response": "a"}, "image_refused"),
        (
            {
                "prompt": "<image>Is it <image>?",
                "response": "a <image>",
                "images": [picture(1)] * 2,
            },
            "image_refused",
        ),
        ({"prompt": "What? " * 200, "response": "a", "image": picture(1)}, "response_truncated"),
    ],
    ids=["damaged", "no image", "one too many", "long"],
)
def test_rows_that_leave_with_a_reason(row: dict[str, Any], reason: str) -> None:
    model = loaded("llava")
    options = ValuationOptions(noise=None)
    profile, _ = build_profile(model, frame(), options)
    scores = score_rows(model, fv.read_rows([row, ROWS[0]]), profile, options)
    assert scores["reason"].to_list() == [reason, None]


def test_an_image_is_not_cut_off() -> None:
    model = prepare_model(*tiny_vision_model("llava"), max_length=22)
    long = fv.read_rows([{"prompt": "What is this? <image>", "response": "a", "image": picture(1)}])
    row = model.encoder("response").encode(long["messages"][0], None, long["images"][0].to_list())
    assert isinstance(row, SkippedRow)
    assert row.reason == "image_truncated"


def test_a_model_without_eyes_says_so() -> None:
    model = tiny_loaded("llama")
    options = ValuationOptions(noise=None)
    text = fv.read_rows([ROWS[1], ROWS[4]])
    profile, _ = build_profile(model, text, options)
    scores = score_rows(model, frame(), profile, options)
    expected = [None if row in (1, 4) else "image_without_vision" for row in range(6)]
    assert scores["reason"].to_list() == expected


def test_a_warm_up_trains_on_images(tmp_path: Path) -> None:
    directory = save_tiny_vision_model(tmp_path / "model", "llava")
    config = ModelConfig(str(directory), local_files_only=True)
    quick = fv.WarmUp(rank=2, epochs=1, batch_rows=3)
    adapter, used = fv.train_adapter(config, frame(), "response", quick, tmp_path / "warm-up")
    assert used == list(range(6))
    adapted = load_model(config.model_copy(update={"adapter": str(adapter)}))
    assert adapted.processor is not None
    assert adapted.fingerprint.adapter is not None
    options = ValuationOptions(noise=None)
    profile, _ = build_profile(adapted, frame(), options)
    assert score_rows(adapted, frame(), profile, options)["status"].to_list() == ["scored"] * 6
