"""Rows about handwritten digits: trusted ones, a clean shard, and one with wrong labels.

The rows name their images by path, as most image datasets do.
"""

import json
import random
from pathlib import Path

from assets.digit_reader.digits import QUESTIONS, STYLES, Digit, answer, digits, png

VALIDATION_ROWS = 90
SHARD_ROWS = 150
WRONG_LABELS = {"clean": 0.0, "noisy": 0.4}


def write_vision_demo_data(folder: Path, seed: int = 0) -> None:
    """Write validation.jsonl, train/<shard>.jsonl, images/ and truth.json."""
    rng = random.Random(seed)
    # None of these images trained the model.
    shown = digits("evaluation")
    rng.shuffle(shown)
    sizes = {"validation": VALIDATION_ROWS, **dict.fromkeys(WRONG_LABELS, SHARD_ROWS)}
    noise: dict[str, dict[str, str]] = {}
    for name, size in sizes.items():
        own, shown = shown[:size], shown[size:]
        path = folder / ("" if name == "validation" else "train") / f"{name}.jsonl"
        images = path.parent / "images"
        images.mkdir(parents=True, exist_ok=True)
        rows = [_row(digit, images, rng) for digit in own]
        wrong = rng.sample(range(size), round(WRONG_LABELS.get(name, 0.0) * size))
        for index in wrong:
            rows[index]["response"] = _wrong(rows[index], rng)
        noise[name] = {str(index): "wrong_label" for index in sorted(wrong)}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "truth.json").write_text(json.dumps({"noise": noise}), "utf-8")


def _row(digit: Digit, images: Path, rng: random.Random) -> dict[str, str]:
    question, style = rng.choice(QUESTIONS), rng.choice(STYLES)
    name = f"{digit.number}_{style}.png"
    (images / name).write_bytes(png(digit, style))
    return {
        "prompt": f"<image>\n{question}",
        "response": answer(question, digit, style),
        "image": f"images/{name}",
    }


def _wrong(row: dict[str, str], rng: random.Random) -> str:
    """Draw another answer to the same question."""
    question = row["prompt"].removeprefix("<image>\n")
    possible = {answer(question, Digit(0, label), style) for label in range(10) for style in STYLES}
    return rng.choice(sorted(possible - {row["response"]}))
