"""Handwritten digits of scikit-learn as PNG images, in several styles, with questions."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STYLES = ("plain", "inverted", "edges", "noisy", "rotated")
WHICH = "What digit is this?"
HOW = "How is the digit drawn?"
PARITY = "Is the digit even or odd?"
QUESTIONS = (WHICH, HOW, PARITY)

# The first images of a shuffle train the model; the others are seen by nobody before evaluation.
TRAINING_IMAGES = 1200
_SPLIT_SEED = 7
_SIDE = 32


@dataclass(frozen=True)
class Digit:
    """One handwritten digit: its number in scikit-learn's set, and what it shows."""

    number: int
    label: int


@cache
def _loaded() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images, data.target


def digits(split: str) -> list[Digit]:
    """The digits of "training" or of "evaluation", in a fixed random order."""
    _, labels = _loaded()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels)).tolist()
    chosen = order[:TRAINING_IMAGES] if split == "training" else order[TRAINING_IMAGES:]
    return [Digit(number, int(labels[number])) for number in chosen]


def picture(digit: Digit, style: str = "plain") -> Image.Image:
    """Draw a digit, white on black, in a style."""
    grey = np.round(_loaded()[0][digit.number] * 255 / 16).astype(np.uint8)
    image = Image.fromarray(grey).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    if style == "inverted":
        return Image.eval(image, lambda value: 255 - value)
    if style == "edges":
        return image.filter(ImageFilter.FIND_EDGES)
    if style == "noisy":
        texture = np.random.default_rng(digit.number).integers(0, 130, (_SIDE, _SIDE))
        return Image.fromarray(np.maximum(np.asarray(image), texture.astype(np.uint8)))
    if style == "rotated":
        return image.transpose(Image.Transpose.ROTATE_90)
    return image


def png(digit: Digit, style: str = "plain") -> bytes:
    stream = io.BytesIO()
    picture(digit, style).save(stream, "PNG")
    return stream.getvalue()


def answer(question: str, digit: Digit, style: str = "plain") -> str:
    if question == WHICH:
        return NAMES[digit.label]
    if question == HOW:
        return style
    return "odd" if digit.label % 2 else "even"


def row(question: str, digit: Digit, style: str = "plain") -> dict[str, object]:
    """A finetuning row about a digit, its image as bytes."""
    return {
        "prompt": f"<image>{question}",
        "response": answer(question, digit, style),
        "image": png(digit, style),
    }


def pixels(images: Sequence[Image.Image], side: int) -> NDArray[np.float32]:
    """Images as the model's processor gives them [N, 3, side, side]: in [−1, 1]."""
    small = [
        np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        for image in images
    ]
    return (np.stack(small).transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
