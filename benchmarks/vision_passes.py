"""The passes over rows with images beside a plain forward pass; images prepared ahead.

    python -m benchmarks.vision_passes

Baseline "plain": `model(**inputs).logits` in inference mode over the same batches, with the digit
reader. Then the whole pass over photographs of 1,600 × 1,200 pixels, as JPEG: images prepared
when they are needed (baseline) and by threads while the model is busy.
"""

from __future__ import annotations

import io
import statistics
import time
from functools import partial

import numpy as np
import polars as pl
from PIL import Image

from assets.digit_reader.digits import QUESTIONS, STYLES, digits, row
from assets.digit_reader.model import digit_reader_directory
from benchmarks.forward_passes import exact, features, padded, plain
from benchmarks.harness import argument_parser, interleaved_seconds, medians, save
from forvalue_dagster import ModelConfig, read_rows
from forvalue_dagster.engine.forward import forward_pass
from forvalue_dagster.engine.scoring import build_profile
from forvalue_dagster.models.loading import LoadedModel, load_model
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.valuation.preconditioner import Preconditioner

BUDGET = 1024
PHOTO = (1600, 1200)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--photographs", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    loaded = load_model(ModelConfig(str(digit_reader_directory()), local_files_only=True))
    shown = digits("evaluation")
    rows = [
        row(QUESTIONS[n % len(QUESTIONS)], digit, STYLES[n % len(STYLES)])
        for n, digit in enumerate(shown[: arguments.rows])
    ]
    batches = padded(loaded, read_rows(rows), BUDGET)
    trusted = read_rows([row(QUESTIONS[n % 3], digit) for n, digit in enumerate(shown[-16:])])
    profile, _ = build_profile(loaded, trusted, ValuationOptions(noise=None))
    passes = {
        "plain": partial(plain, loaded),
        "features": partial(features, loaded),
        "exact": partial(exact, loaded, profile.direction(Preconditioner())),
    }
    seconds = interleaved_seconds(passes, batches, arguments.repeats)
    middle = medians(seconds)
    save(
        "vision_passes",
        {
            "rows": arguments.rows,
            "tokens": int(sum(batch.attention_mask.sum() for batch in batches)),
            "response_tokens": int(sum(batch.mask.sum() for batch in batches)),
            "seconds": seconds,
        }
        | {f"{n} / plain": round(middle[n] / middle["plain"], 3) for n in ("features", "exact")}
        | {"photographs": prepared_ahead(loaded, photographs(arguments.photographs))},
    )


def photographs(count: int) -> pl.DataFrame:
    rows = []
    for number in range(count):
        generator = np.random.default_rng(number)
        blocks = generator.integers(0, 255, (30, 40, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(blocks).resize(PHOTO, Image.Resampling.BICUBIC).save(stream, "JPEG")
        words = " ".join(["word"] * 40)
        rows.append({"prompt": f"<image>{words}", "response": words, "image": stream.getvalue()})
    return read_rows(rows)


def prepared_ahead(loaded: LoadedModel, frame: pl.DataFrame) -> dict[str, object]:
    ahead = ValuationOptions(batch_tokens=512)
    kinds = {"when needed": ahead.model_copy(update={"image_workers": 0}), "ahead": ahead}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(3):
        for name, options in kinds.items():
            start = time.perf_counter()
            list(forward_pass(loaded, frame, options, lambda passed: passed))
            times[name].append(round(time.perf_counter() - start, 2))
    middle = {name: statistics.median(spent) for name, spent in times.items()}
    ratio = round(middle["ahead"] / middle["when needed"], 3)
    return {"count": len(frame), "seconds": times, "ahead / when needed": ratio}


if __name__ == "__main__":
    main()
