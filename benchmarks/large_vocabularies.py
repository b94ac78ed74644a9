"""The passes on a CPU with the heads of today's models, which have 150,000 to 260,000 tokens.

    python -m benchmarks.large_vocabularies

Random weights in the shapes of Gemma 3 270M and Qwen2.5-0.5B, float32; 24 rows of GSM8K's lengths
without their longest prompts, so that two thirds of the tokens are in responses. Baseline "plain":
`model(input_ids, attention_mask, use_cache=False).logits` over the same batches, taking turns.
"""

from __future__ import annotations

from functools import partial

import polars as pl
import torch

from benchmarks.accelerator_models import loaded_model, rows
from benchmarks.forward_passes import OPTIONS, exact, features, padded, plain
from benchmarks.harness import argument_parser, interleaved_seconds, medians, save
from forvalue_dagster.engine.scoring import build_profile
from forvalue_dagster.valuation.preconditioner import Preconditioner

SHAPES = ("Gemma 3 270M", "Qwen2.5-0.5B")


def measure(shape: str, repeats: int) -> dict:
    loaded = loaded_model(shape, torch.device("cpu"), torch.float32)
    batches = padded(loaded, rows(24, prompt=0.6), 2048)
    validation = rows(4, seed=7, prompt=0.6).with_columns(group=pl.lit("all"))
    direction = build_profile(loaded, validation, OPTIONS)[0].direction(Preconditioner())
    passes = {
        "plain": partial(plain, loaded),
        "features": partial(features, loaded),
        "exact": partial(exact, loaded, direction),
    }
    seconds = interleaved_seconds(passes, batches, repeats)
    middle = medians(seconds)
    return {
        "vocabulary": loaded.unembedding.vocabulary_size,
        "width": loaded.unembedding.width,
        "tokens": int(sum(batch.attention_mask.sum() for batch in batches)),
        "response_tokens": int(sum(batch.mask.sum() for batch in batches)),
        "seconds": seconds,
        "features / plain": round(middle["features"] / middle["plain"], 3),
        "exact / plain": round(middle["exact"] / middle["plain"], 3),
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    save(
        "large_vocabularies",
        {"shapes": {shape: measure(shape, arguments.repeats) for shape in SHAPES}},
    )


if __name__ == "__main__":
    main()
