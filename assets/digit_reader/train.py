"""Train the digit reader's encoder and projector: `python -m assets.digit_reader.train`.

First the encoder learns digits and styles under two linear heads, which are thrown away; then
the projector learns to tell the frozen language model what the encoder sees. Writes the weights,
prints their hash (for `model.WEIGHTS_SHA256`) and the accuracy on images that were not trained on.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import forvalue_dagster as fv
from assets.digit_reader.digits import (
    HOW,
    NAMES,
    QUESTIONS,
    STYLES,
    WHICH,
    Digit,
    answer,
    digits,
    picture,
    pixels,
)
from assets.digit_reader.model import SIDE, TRAINED, WEIGHTS, untrained

SEED = 0
ENCODER_EPOCHS, ENCODER_BATCH = 60, 128
PROJECTOR_STEPS, PROJECTOR_BATCH = 450, 24
_IGNORED = -100


def train(encoder_epochs: int = ENCODER_EPOCHS, steps: int = PROJECTOR_STEPS) -> tuple[Any, Any]:
    """Return the trained model and its processor."""
    torch.manual_seed(SEED)
    model, processor = untrained(fv.embedded_model_directory())
    shown = [(digit, style) for style in STYLES for digit in digits("training")]
    images = torch.from_numpy(pixels([picture(*one) for one in shown], SIDE))
    _train_encoder(model.model.vision_tower, shown, images, encoder_epochs)
    _train_projector(model, processor, shown, images, steps)
    return model.eval(), processor


def _train_encoder(
    encoder: Any, shown: Sequence[tuple[Digit, str]], images: Tensor, epochs: int
) -> None:
    labels = torch.tensor([digit.label for digit, _ in shown])
    styles = torch.tensor([STYLES.index(style) for _, style in shown])
    width = encoder.config.hidden_size
    heads = nn.ModuleList([nn.Linear(width, len(NAMES)), nn.Linear(width, len(STYLES))])
    steps = epochs * (len(images) // ENCODER_BATCH)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    encoder.requires_grad_(True).train()
    for chosen in _batches(len(images), ENCODER_BATCH, steps):
        batch = images[chosen]
        shift = torch.randint(-2, 3, (2,)).tolist()
        seen = encoder(pixel_values=batch.roll(shift, (2, 3))).last_hidden_state[:, 1:].mean(1)
        loss = loss_of(heads[0](seen), labels[chosen]) + loss_of(heads[1](seen), styles[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    encoder.eval()


def _train_projector(
    model: Any, processor: Any, shown: Sequence[tuple[Digit, str]], images: Tensor, steps: int
) -> None:
    model.requires_grad_(False)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    optimizer = torch.optim.AdamW(projector.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    started = time.monotonic()
    # The digit itself is hardest, so it is asked for half of the time.
    questions = [WHICH, WHICH, HOW, QUESTIONS[2]]
    for step, chosen in enumerate(_batches(len(images), PROJECTOR_BATCH, steps), start=1):
        asked = [questions[place % 4] for place in range(len(chosen))]
        said = [answer(q, *shown[place]) for q, place in zip(asked, chosen.tolist(), strict=True)]
        inputs = _tokens(processor, asked, said)
        loss = model(pixel_values=images[chosen], use_cache=False, **inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            seconds = time.monotonic() - started
            print(f"step {step} of {steps}: loss {loss.item():.3f}, {seconds:.0f} s", flush=True)


def _tokens(processor: Any, asked: Sequence[str], said: Sequence[str]) -> dict[str, Tensor]:
    """Tokens of questions with their answers, the answers as labels."""
    rows, labels = [], []
    for question, text in zip(asked, said, strict=True):
        prompt = processor.apply_chat_template(_turns(question), add_generation_prompt=True)
        four = prompt.replace(processor.image_token, processor.image_token * 4)
        before = processor.tokenizer(four, add_special_tokens=False)["input_ids"]
        after = processor.tokenizer(f"{text}<|im_end|>", add_special_tokens=False)["input_ids"]
        rows.append(torch.tensor(before + after))
        labels.append(torch.tensor([_IGNORED] * len(before) + after))
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return {
        "input_ids": padded,
        "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long(),
        "labels": nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=_IGNORED),
    }


def _turns(question: str) -> list[dict[str, Any]]:
    parts = [{"type": "image"}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def _batches(items: int, size: int, steps: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    made = 0
    while made < steps:
        order = torch.randperm(items, generator=generator)
        for chosen in order[: items - items % size].view(-1, size):
            if made < steps:
                yield chosen
            made += 1


@torch.inference_mode()
def accuracy(model: Any, processor: Any, count: int) -> dict[str, float]:
    """Share of right answers to each question about images that were not trained on.

    The likeliest of the possible answers counts.
    """
    shown = [(digit, "plain") for digit in digits("evaluation")[:count]]
    styled = [(d, STYLES[n % len(STYLES)]) for n, d in enumerate(digits("evaluation")[:count])]
    cases = {
        WHICH: (shown, NAMES),
        HOW: (styled, STYLES),
        QUESTIONS[2]: (shown, ("even", "odd")),
    }
    return {
        question: float(
            np.mean(
                [
                    _likeliest(model, processor, question, one, choices) == answer(question, *one)
                    for one in seen
                ]
            )
        )
        for question, (seen, choices) in cases.items()
    }


def _likeliest(
    model: Any, processor: Any, question: str, one: tuple[Digit, str], choices: Sequence[str]
) -> str:
    inputs = _tokens(processor, [question] * len(choices), choices)
    image = torch.from_numpy(pixels([picture(*one)], SIDE)).expand(len(choices), -1, -1, -1)
    labels = inputs.pop("labels")
    logits = model(pixel_values=image, use_cache=False, **inputs).logits[:, :-1].log_softmax(-1)
    scored = labels[:, 1:] != _IGNORED
    picked = logits.gather(2, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    return choices[int((picked * scored).sum(1).argmax())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    model, processor = train()
    trained = {n: p for n, p in model.state_dict().items() if n.startswith(TRAINED)}
    save_file({name: values.contiguous() for name, values in trained.items()}, arguments.weights)
    print("sha256", sha256(arguments.weights.read_bytes()).hexdigest())
    for question, share in accuracy(model, processor, 200).items():
        print(f"{question} {share:.1%} right on 200 images not trained on")


if __name__ == "__main__":
    main()
