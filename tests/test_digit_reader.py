"""The digit reader: what is committed is what was trained, and it sees images it never met."""

from __future__ import annotations

from hashlib import sha256

import pytest
from transformers import AutoProcessor, LlavaForConditionalGeneration

from assets.digit_reader.digits import QUESTIONS, digits, png
from assets.digit_reader.model import WEIGHTS, WEIGHTS_SHA256, digit_reader_directory
from assets.digit_reader.train import accuracy, train

UNSEEN = 80
BAR = 0.92


def test_the_weights_are_the_committed_ones() -> None:
    assert sha256(WEIGHTS.read_bytes()).hexdigest() == WEIGHTS_SHA256
    assert WEIGHTS.stat().st_size <= 5_000_000


def test_evaluation_images_trained_nothing() -> None:
    shown = {side: {png(digit) for digit in digits(side)} for side in ("training", "evaluation")}
    assert not shown["training"] & shown["evaluation"]
    assert len(digits("training")) + len(digits("evaluation")) == 1797


@pytest.mark.slow
@pytest.mark.model
def test_it_reads_digits_that_it_never_saw() -> None:
    folder = digit_reader_directory()
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    found = accuracy(model, AutoProcessor.from_pretrained(folder), UNSEEN)
    assert set(found) == set(QUESTIONS)
    assert min(found.values()) >= BAR, found


@pytest.mark.slow
@pytest.mark.model
def test_it_can_be_trained_again() -> None:
    """Other machines round otherwise: the accuracy is the same, the bytes need not be."""
    found = accuracy(*train(), UNSEEN)
    assert min(found.values()) >= BAR, found
