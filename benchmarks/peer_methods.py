"""Exact For-Value beside what people would otherwise pick: seconds, peak memory, AUC, recall.

    python -m benchmarks.peer_methods                  # all tokens, as the papers score the task
    python -m benchmarks.peer_methods --tokens response

Rows of the DataInf task, the same padded batches for everybody (and for the
published For-Value also its own: eight rows, padded to 512 tokens, timed on few rows). Each method
values every training row for the mean of the validation rows or for each of them; seconds are
those of both sides' passes and of the values.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.datainf_task import TASK, identification
from benchmarks.harness import argument_parser, need, peak_megabytes, reset_peak, save
from benchmarks.passes import ONE_LINE
from forvalue_dagster import ModelConfig, read_rows
from forvalue_dagster.data.batching import Batch, batches
from forvalue_dagster.data.chat import ConversationEncoder, EncodedRow, Encoding
from forvalue_dagster.engine.forward import response_positions
from forvalue_dagster.models.loading import LoadedModel, load_model
from forvalue_dagster.valuation.pairwise import pairwise_values
from forvalue_dagster.valuation.positions import ResponsePositions
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.profile_builder import ProfileBuilder
from forvalue_dagster.valuation.value import exact_values

PUBLISHED_ROWS, PUBLISHED_WIDTH, PUBLISHED_BATCH = 48, 512, 8


def for_value(
    kind: str, loaded: LoadedModel, training: list[Batch], validation: list[Batch]
) -> Tensor:
    builder = ProfileBuilder(loaded.unembedding, ["all"])
    for batch in validation:
        builder.add(response_positions(loaded, batch), ["all"] * len(batch.rows), batch.rows)
    direction = builder.build().direction(Preconditioner(kind))  # type: ignore[arg-type]
    values = [
        exact_values(loaded.unembedding, response_positions(loaded, b), direction).rows.value
        for b in training
    ]
    return peers.in_order(torch.cat(values), training)


def for_value_pairs(loaded: LoadedModel, training: list[Batch], validation: list[Batch]) -> Tensor:
    sides = [
        ResponsePositions.concatenate([response_positions(loaded, batch) for batch in side])
        for side in (training, validation)
    ]
    pairs = pairwise_values(loaded.unembedding, *sides)
    return peers.in_order(peers.in_order(pairs, training).T, validation).T


def lora(
    method: Callable[..., Tensor],
    loaded: LoadedModel,
    training: list[Batch],
    validation: list[Batch],
) -> Tensor:
    return method(*(peers.lora_gradients(loaded, side) for side in (training, validation)))


def embedding(loaded: LoadedModel, training: list[Batch], validation: list[Batch]) -> Tensor:
    means = (peers.mean_hidden_states(loaded, side) for side in (training, validation))
    return peers.embedding_similarity(*means)


METHODS: dict[str, Callable[..., Tensor]] = {
    "For-Value, exact": partial(for_value, "none"),
    "For-Value, exact, preconditioned": partial(for_value, "activation"),
    "For-Value, exact, all pairs": for_value_pairs,
    "For-Value as published, our batches": peers.published_values,
    "Hessian-free, LoRA gradients": partial(lora, peers.hessian_free),
    "DataInf, LoRA gradients": partial(lora, peers.datainf),
    "embedding similarity": embedding,
}


def padded_to(rows: list[EncodedRow], width: int, count: int) -> list[Batch]:
    """Batches of `count` rows in their order, padded to a fixed width."""
    made = []
    for first in range(0, len(rows), count):
        part = rows[first : first + count]
        arrays = [np.zeros((len(part), width), dtype) for dtype in ("int64", "int64", "bool")]
        for place, row in enumerate(part):
            for array, value in zip(arrays, (row.input_ids, 1, row.mask), strict=True):
                array[place, : len(row)] = value
        made.append(Batch(tuple(range(first, first + len(part))), *arrays))
    return made


def encode(
    loaded: LoadedModel, path: Path, count: int, tokens: str
) -> tuple[list[EncodedRow], np.ndarray]:
    frame = read_rows(path)
    frame = frame.gather_every(len(frame) // count)
    encoder = ConversationEncoder(loaded.tokenizer, Encoding(tokens, 512, ONE_LINE))
    rows = [encoder.encode(text) for text in frame["messages"]]
    return [row for row in rows if isinstance(row, EncodedRow)], frame["variation"].to_numpy()


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--validation-rows", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--tokens", choices=["all", "response"], default="all")
    arguments = parser.parse_args()
    folder = need(arguments.data / "datainf")
    loaded, tokens = load_model(ModelConfig(chat_template=ONE_LINE)), arguments.tokens
    train, kinds = encode(loaded, folder / f"{TASK}_train.jsonl", arguments.rows, tokens)
    trusted, own = encode(
        loaded, folder / f"{TASK}_validation.jsonl", arguments.validation_rows, tokens
    )
    sides = [list(batches(rows, arguments.batch_tokens)) for rows in (train, trusted)]
    results: dict[str, dict] = {name: {"seconds": []} for name in METHODS}
    for _ in range(arguments.repeats):
        for name, method in METHODS.items():
            reset_peak()
            start = time.perf_counter()
            values = method(loaded, *sides)
            results[name]["peak_megabytes"] = round(peak_megabytes())
            results[name]["seconds"].append(round(time.perf_counter() - start, 2))
            if values.dim() == 2:
                results[name] |= identification(values.numpy(), kinds, own)
            print(name, results[name], flush=True)
    few = [
        padded_to(rows[:PUBLISHED_ROWS], PUBLISHED_WIDTH, PUBLISHED_BATCH)
        for rows in (train, trusted[:8])
    ]
    same = [
        list(batches(rows, arguments.batch_tokens))
        for rows in (train[:PUBLISHED_ROWS], trusted[:8])
    ]
    timed = {}
    for name, (method, (a, b)) in {
        "published, its own padding": (peers.published_values, few),
        "published, our batches": (peers.published_values, same),
        "exact, our batches": (partial(for_value, "none"), same),
    }.items():
        start = time.perf_counter()
        values = method(loaded, a, b)
        timed[name] = round(time.perf_counter() - start, 2)
    exact = for_value("none", loaded, *sides)
    published = peers.published_values(loaded, *sides)
    middle = {name: float(np.median(result["seconds"])) for name, result in results.items()}
    save(
        f"peer_methods_{tokens}",
        {
            "tokens": tokens,
            "rows": [len(train), len(trusted)],
            "results": results,
            "median seconds / exact For-Value": {
                name: round(seconds / middle["For-Value, exact"], 2)
                for name, seconds in middle.items()
            },
            f"seconds, {PUBLISHED_ROWS} × 8 rows": timed,
            "published, largest error relative to the largest value": round(
                float((published - exact).abs().max() / exact.abs().max()), 4
            ),
            "published, correlation with exact": round(
                float(np.corrcoef(published.numpy(), exact.numpy())[0, 1]), 5
            ),
        },
    )


if __name__ == "__main__":
    main()
