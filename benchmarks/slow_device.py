"""How much of the host's work hides behind a device: a model that takes its time without the CPU.

    python -m benchmarks.slow_device

A model whose forward pass sleeps 20 ms for each batch of 16 rows of 220 tokens stands for a GPU.
The whole feature step runs: encoding, statistics, features, records, Parquet. What comes after the
forward pass is the device's work on a GPU, but the processor's here. The head is as small as it can
be, with 64 tokens and a width of 8, and still takes milliseconds. So two figures are reported: the
step's time divided by (batches × 20 ms), and the same without the time of the head.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer, models, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from upath import UPath

from benchmarks.harness import save
from forvalue_dagster.data.read import read_rows
from forvalue_dagster.engine import features
from forvalue_dagster.engine.transfer import Transfer
from forvalue_dagster.models.loading import LoadedModel, prepare_model
from forvalue_dagster.options.valuation import FeaturePrecision, ValuationOptions
from forvalue_dagster.storage.parts import StoredParts
from forvalue_dagster.valuation.sweep_shape import wide

ROWS, BATCH_ROWS, SECONDS = 1600, 16, 0.02
VOCABULARY, WIDTH = 64, 8
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<u>{{ message['content'] }}"
    "{% else %}<a>{{ message['content'] }}<e>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def text(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(list("abcdefgh"), length))


def rows(count: int) -> pl.DataFrame:
    """Rows of nearly one length: about 90 tokens of prompt and 130 of response."""
    rng = np.random.default_rng(0)
    return read_rows([{"prompt": text(rng, 165), "response": text(rng, 240)} for _ in range(count)])


def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<e>", "<u>", "<a>"], show_progress=False
    )
    bpe.train_from_iterator([text(np.random.default_rng(1), 20_000)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<e>", pad_token="<e>")
    fast.add_special_tokens({"additional_special_tokens": ["<u>", "<a>"]})
    fast.chat_template = TEMPLATE
    return fast


def sleeping_model(passed: list[int]) -> LoadedModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    loaded = prepare_model(LlamaForCausalLM(config), tokenizer())
    states, head = torch.randn(BATCH_ROWS * 2, 512, WIDTH), loaded.model.lm_head

    def sleeping(input_ids: torch.Tensor, **_: Any) -> Any:
        time.sleep(SECONDS)
        passed.append(len(input_ids))
        return head(states[: input_ids.shape[0], : input_ids.shape[1]])

    loaded.model.forward = sleeping
    return replace(loaded, unembedding=replace(loaded.unembedding, shape=wide(2**30)))


def measure() -> dict[str, Any]:
    passed: list[int] = []
    loaded, frame = sleeping_model(passed), rows(ROWS)
    encoder = loaded.encoder("response")
    longest = max(len(encoder.encode(text)) for text in frame["messages"])
    options = ValuationOptions(
        noise=None,
        batch_tokens=BATCH_ROWS * longest,
        window_rows=160,
        features=FeaturePrecision(2, "float16"),
    )
    head, in_head = features.feature_head, []

    def timed(*arguments: Any) -> Transfer:
        start = time.perf_counter()
        result = head(*arguments)
        in_head.append(time.perf_counter() - start)
        return result

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(features, "feature_head", timed),
    ):
        store = StoredParts(UPath(Path(folder)))
        start = time.perf_counter()
        parts = list(features.feature_parts(loaded, frame, options, store=store))
        spent = time.perf_counter() - start
    asleep = len(passed) * SECONDS
    assert sum(len(part.filter(pl.col("status") == "scored")) for part in parts) == ROWS
    return {
        "rows": ROWS,
        "batches": len(passed),
        "longest row, tokens": longest,
        "seconds": round(spent, 3),
        "head, seconds": round(sum(in_head), 3),
        "time / (batches × 20 ms)": round(spent / asleep, 3),
        "without the head": round((spent - sum(in_head)) / asleep, 3),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    save("slow_device", measure())
