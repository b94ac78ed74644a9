"""Data preparation: from the datasets as they are published to rows, a shard each few thousand.

What each function knows of the published form (columns, order, how rows were damaged) is from the
dataset's card, from DataInf's repository (ykwon0407/DataInf) or from the authors' code
(vengdeng/For-Value-Efficient-Forward-Only-Data-Valuation-for-finetuning); docs/experiments.md says
which is which, and what is a guess.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

import forvalue_dagster as fv

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
SHARD_ROWS = 5_000
SEED = 42


@dataclass(frozen=True)
class Source:
    """Where published datasets come from.

    Attributes:
        saved: folder of datasets written by `save_to_disk`, named as on the hub, with their
            configuration and split below; None to ask the hub.
        limit: take at most so many rows of a split, drawn at random.
    """

    saved: Path | None = None
    limit: int | None = None

    def split(self, name: str, split: str, configuration: str = "default") -> Dataset:
        """Return one split of a dataset of the hub, images undecoded."""
        import datasets

        if self.saved is None:
            rows = datasets.load_dataset(name, configuration, split=split)
        else:
            rows = datasets.load_from_disk(str(self.saved / name / configuration / split))
        for column, feature in rows.features.items():
            undecoded = datasets.Image(decode=False)
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, undecoded)
            elif isinstance(getattr(feature, "feature", None), datasets.Image):
                rows = rows.cast_column(column, datasets.List(undecoded))
        return self._limited(rows)

    def folder(self, name: str) -> Dataset:
        """Return a dataset that no hub has.

        Raises:
            SystemExit: saying where it is, if it is not in the folder.
        """
        import datasets

        path = None if self.saved is None else self.saved / name
        if path is None or not path.exists():
            raise SystemExit(
                f"{name} is in no hub. Clone https://github.com/ykwon0407/DataInf and give its "
                "folder `datasets` as --saved."
            )
        return self._limited(datasets.load_from_disk(str(path)))

    def _limited(self, rows: Dataset) -> Dataset:
        # Published rows lie by kind, so the first ones would be of one.
        kept = len(rows) if self.limit is None else min(self.limit, len(rows))
        return rows if kept == len(rows) else rows.shuffle(seed=SEED).select(range(kept))


@dataclass(frozen=True)
class Prepared:
    """Training and validation rows, made one after another."""

    training: Iterator[Row]
    validation: Iterator[Row]

    def write(self, folder: Path) -> None:
        """Write train/<number>.parquet and validation.parquet in place of older ones."""
        (folder / "train").mkdir(parents=True, exist_ok=True)
        for older in (folder / "train").glob("*.parquet"):
            older.unlink()
        shard: list[Row] = []
        written = 0
        for row in self.training:
            shard.append(row)
            if len(shard) == SHARD_ROWS:
                pl.DataFrame(shard).write_parquet(folder / "train" / f"{written:03}.parquet")
                shard, written = [], written + 1
        if shard:
            pl.DataFrame(shard).write_parquet(folder / "train" / f"{written:03}.parquet")
        pl.DataFrame(list(self.validation)).write_parquet(folder / "validation.parquet")


Prepare = Callable[[Source], Prepared]


def datainf(task: str) -> Prepare:
    """Ten kinds of rows: the response is what `text` adds to `prompt`, without the `</s>`."""

    def rows(table: Dataset) -> Iterator[Row]:
        for row in table:
            response = row["text"].removeprefix(row["prompt"]).removesuffix("</s>")
            yield {"prompt": row["prompt"], "response": response, "kind": row["variation"]}

    def prepare(source: Source) -> Prepared:
        return Prepared(
            rows(source.folder(f"{task}_train.hf")), rows(source.folder(f"{task}_test.hf"))
        )

    return prepare


def gsm8k(source: Source) -> Prepared:
    """The test split is for the finetuned model; the last training rows are the trusted ones."""
    rows = source.split("openai/gsm8k", "train", "main")
    trusted = min(473, len(rows) // 2)
    return Prepared(
        iter(rows.select(range(len(rows) - trusted))),
        iter(rows.select(range(len(rows) - trusted, len(rows)))),
    )


def medical(source: Source) -> Prepared:
    """10,000 rows in two halves; 40 % of the answers of one are damaged."""
    rows = source.split("FreedomIntelligence/medical-o1-reasoning-SFT", "train", "en")
    halves = rows.select(range(min(10_000, len(rows)))).train_test_split(0.5, seed=SEED)

    def conversations(half: Dataset) -> list[Row]:
        form = "## Thinking\n\n{Complex_CoT}\n\n## Final Response\n\n{Response}"
        return [{"prompt": row["Question"], "response": form.format(**row)} for row in half]

    def damaged(half: list[Row]) -> Iterator[Row]:
        texts = fv.corrupt_responses(
            [row["response"] for row in half], 0.4, SEED, ["span_deletion", "span_insertion"]
        )
        for row, (text, recipe) in zip(half, texts, strict=True):
            yield {"prompt": row["prompt"], "response": text, "clean": recipe is None}

    return Prepared(damaged(conversations(halves["train"])), iter(conversations(halves["test"])))


_THINK = (
    "You will solve a problem/request. You should provide your thoughts within <think> </think> "
    "tags before providing the answer.\nWrite your final answer within <answer> </answer> tags."
)


def pmc(source: Source) -> Prepared:
    """Questions about figures of medical papers, with the reasoning of a larger model."""
    rows = source.split("UCSC-VLAA/MedVLThinker-pmc_vqa-gpt_4o_reasoning-tokenized", "train")
    trusted = min(500, len(rows) // 2)

    def conversations(part: Dataset) -> Iterator[Row]:
        for row in part:
            options = json.loads(row["options"])
            choices = "".join(f"\n\n{letter}. {text}" for letter, text in options.items())
            yield {
                "prompt": f"{_THINK}\n\nQuestion: {row['question']}\n\nOptions:{choices}",
                "response": f"<think> {row['reasoning']} </think>\n"
                f"<answer> {row['answer_label']} </answer>",
                "images": [_bytes(image) for image in row["images"]],
            }

    return Prepared(
        conversations(rows.select(range(trusted, len(rows)))),
        conversations(rows.select(range(trusted))),
    )


def cats_and_dogs(source: Source) -> Prepared:
    """400 + 400 images, half of each animal called the other; 100 + 100 named rightly."""
    rows = source.split("microsoft/cats_vs_dogs", "train")
    generator = np.random.default_rng(SEED)
    animals = ("cat", "dog")
    labels = np.array(rows["labels"])
    training: list[tuple[int, str, str]] = []
    validation: list[tuple[int, str, str]] = []
    for label, animal in enumerate(animals):
        found = np.flatnonzero(labels == label)[:500]
        own, trusted = np.split(found, [len(found) * 4 // 5])
        flipped = set(generator.permutation(own)[: len(own) // 2].tolist())
        for index in own.tolist():
            wrong = index in flipped
            said = animals[1 - label] if wrong else animal
            training.append((index, said, "flipped" if wrong else animal))
        validation += [(index, animal, animal) for index in trusted.tolist()]

    def conversations(part: list[tuple[int, str, str]]) -> Iterator[Row]:
        for index, said, kind in part:
            yield {
                "prompt": "What is the animal in the image?",
                "response": f"It is a {said}",
                "images": [_resized(rows[index]["image"], 512)],
                "kind": kind,
            }

    return Prepared(conversations(training), conversations(validation))


def style(source: Source) -> Prepared:
    """Captioned pictures in three styles."""
    name = "kewu93/three_styles_prompted_250_512x512"

    def conversations(part: Dataset) -> Iterator[Row]:
        for row in part:
            yield _described(row["image"], row["text"], row["style_class"])

    return Prepared(
        conversations(source.split(name, "train")), conversations(source.split(name, "val"))
    )


def subject(source: Source) -> Prepared:
    """Photographs of thirty things, four to six of each; the last two of each are trusted."""
    rows = source.split("ImagenHub/DreamBooth_Concepts", "train")
    places: dict[str, list[int]] = {}
    for index, name in enumerate(rows["subject"]):
        places.setdefault(name, []).append(index)

    def conversations(indices: list[int]) -> Iterator[Row]:
        for index in indices:
            row = rows[index]
            yield _described(row["image"], f"A photo of a {row['subject']}.", row["subject"])

    return Prepared(
        conversations([index for own in places.values() for index in own[:-2]]),
        conversations([index for own in places.values() for index in own[-2:]]),
    )


def _described(image: Row, text: str, kind: str) -> Row:
    return {
        "prompt": "Describe the image.",
        "response": text,
        "images": [_bytes(image)],
        "kind": kind,
    }


def _bytes(image: Row) -> bytes:
    data = image["bytes"]
    return Path(image["path"]).read_bytes() if data is None else data


def _resized(image: Row, side: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    with Image.open(io.BytesIO(_bytes(image))) as picture:
        picture.convert("RGB").resize((side, side)).save(stream, "PNG")
    return stream.getvalue()
