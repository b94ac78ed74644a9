"""Effectiveness on images: mislabelled rows, and which training rows share subject or style.

    python -m benchmarks.vision_tasks

The model is the digit reader (`assets/digit_reader`); every image is one that it was not trained
on. Tasks, as in For-Value (arXiv 2508.10180) on its own data and models:

- mislabelled: a share of the training rows has the label of another class, the validation rows
  are clean. AUC of clean over flipped rows, and recall of clean ones among as many top rows: over
  all rows, and the mean over classes of rows whose image (or whose label) is of the class, by
  their value for the validation rows of that class.
- subject: for each validation row, the training rows of its digit should rank first.
- style: the same digits drawn in five ways; training rows of the validation row's style first.

"asked for parity" is harder than the paper's: the answers (even, odd) do not name the digit.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from assets.digit_reader.digits import (
    HOW,
    NAMES,
    PARITY,
    STYLES,
    WHICH,
    Digit,
    digits,
    row,
)
from assets.digit_reader.model import digit_reader_directory
from assets.digit_reader.train import accuracy
from benchmarks import peers
from benchmarks.datainf_task import identification
from benchmarks.forward_passes import padded
from benchmarks.harness import argument_parser, save
from benchmarks.passes import gathered, profile_of
from benchmarks.rendering import result
from forvalue_dagster import ModelConfig, read_rows
from forvalue_dagster.engine.scoring import build_profile, score_rows
from forvalue_dagster.models.loading import LoadedModel, load_model
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.valuation.pairwise import pairwise_values
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.value import exact_values

VALIDATION, TRAINING = 100, 400
PROJECTOR = ("linear_1", "linear_2")
BUDGET = 2048


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--identify-only", action="store_true", help="keep what was measured of wrong labels"
    )
    arguments = parser.parse_args()
    loaded = load_model(ModelConfig(str(digit_reader_directory()), local_files_only=True))
    shown = digits("evaluation")
    trusted, training = shown[:VALIDATION], shown[VALIDATION : VALIDATION + TRAINING]
    results: dict[str, Any] = {}
    if arguments.identify_only:
        results = {k: v for k, v in result("vision_tasks").items() if k.startswith("mislabelled")}
    for share in () if arguments.identify_only else (0.4, 0.5, 0.6):
        runs = [mislabelled(loaded, training, trusted, share, s) for s in range(arguments.seeds)]
        results[f"mislabelled, {share:.0%} flipped"] = _means(runs)
    for question, name in ((WHICH, "subject"), (PARITY, "subject, asked for parity")):
        sides = [
            [(row(question, digit), NAMES[digit.label]) for digit in side]
            for side in (training, trusted)
        ]
        results[name] = identified(loaded, *sides)
    sides = [
        [(row(HOW, digit, style), style) for digit in side for style in STYLES]
        for side in (training[: TRAINING // len(STYLES)], trusted[: VALIDATION // len(STYLES)])
    ]
    results["style"] = identified(loaded, *sides)
    reads = accuracy(loaded.model, loaded.processor, 200)
    about = {"rows": [TRAINING, VALIDATION], "seeds": arguments.seeds}
    save("vision_tasks", about | {"accuracy of the model": reads} | results)


def mislabelled(
    loaded: LoadedModel, training: list[Digit], trusted: list[Digit], share: float, seed: int
) -> dict[str, dict[str, float]]:
    generator = np.random.default_rng(seed)
    flipped = np.zeros(len(training), dtype=bool)
    flipped[generator.permutation(len(training))[: round(share * len(training))]] = True
    labels = [
        NAMES[(digit.label + int(generator.integers(1, 10))) % 10] if wrong else NAMES[digit.label]
        for digit, wrong in zip(training, flipped, strict=True)
    ]
    rows = [row(WHICH, d) | {"response": label} for d, label in zip(training, labels, strict=True)]
    train = read_rows(rows)
    trusted_rows = read_rows([row(WHICH, digit) for digit in trusted])
    options = ValuationOptions()
    profile, _ = build_profile(loaded, trusted_rows, options)
    scores = score_rows(loaded, train, profile, options)
    found = {
        "value": scores["value"].to_numpy(),
        "alignment": scores["alignment"].to_numpy(),
        "noise probability": -scores["noise_probability"].to_numpy(),
        "NLL": -scores["nll"].to_numpy(),
    }
    detected = {name: _detected(values, ~flipped) for name, values in found.items()}
    pairs = all_pairs(loaded, train, trusted_rows)
    known = np.array([NAMES[digit.label] for digit in trusted])
    seen = np.array([NAMES[digit.label] for digit in training])
    for name, values in pairs.items():
        detected[f"{name}, all rows"] = _detected(values.mean(1), ~flipped)
        for kind, classes in (("image", seen), ("label", np.array(labels))):
            of_class = [
                _detected(values[classes == one][:, known == one].mean(1), ~flipped[classes == one])
                for one in NAMES
            ]
            detected[f"{name}, per class of the {kind}"] = _mean(of_class)
    print(share, seed, detected, flush=True)
    return detected


def identified(
    loaded: LoadedModel,
    training: list[tuple[dict[str, object], str]],
    trusted: list[tuple[dict[str, object], str]],
) -> dict[str, dict[str, float]]:
    sides = [read_rows([one for one, _ in side]) for side in (training, trusted)]
    kinds = [np.array([kind for _, kind in side]) for side in (training, trusted)]
    found = {
        name: identification(pairs, *kinds) for name, pairs in all_pairs(loaded, *sides).items()
    }
    print(found, flush=True)
    return found


def all_pairs(
    loaded: LoadedModel, training: pl.DataFrame, trusted: pl.DataFrame
) -> dict[str, np.ndarray]:
    """What each method says of each pair of rows [N, M], by the rows' own order."""
    start = time.perf_counter()
    own, frame = gathered(loaded, training)
    other, known = gathered(loaded, trusted)
    profile = profile_of(loaded.unembedding, other)
    order = [frame["row"].arg_sort().to_numpy(), known["row"].arg_sort().to_numpy()]
    found: dict[str, Tensor] = {}
    for name, kind in (("plain", "none"), ("preconditioned", "activation")):
        direction = profile.direction(Preconditioner(kind))  # type: ignore[arg-type]
        metric = direction.metric.to(own.hidden)
        pairs = pairwise_values(loaded.unembedding, own, other, metric)
        norms = [
            exact_values(loaded.unembedding, side, direction).rows.norm for side in (own, other)
        ]
        found[f"value, {name}"] = pairs
        # A row that the model knows well has a small gradient; its direction says as much.
        found[f"alignment, {name}"] = pairs / (norms[0][:, None] * norms[1])
    means = [
        torch.stack([side.hidden[rows].mean(0) for rows in side.row_slices()])
        for side in (own, other)
    ]
    found["embedding similarity"] = peers.embedding_similarity(*means)
    ordered = {name: values.numpy()[order[0]][:, order[1]] for name, values in found.items()}
    gradients = [
        peers.lora_gradients(loaded, padded(loaded, side, BUDGET), adapted=PROJECTOR)
        for side in (training, trusted)
    ]
    ordered["Hessian-free, projector"] = peers.hessian_free(*gradients).detach().numpy()
    print(f"pairs in {time.perf_counter() - start:.0f} s", flush=True)
    return ordered


def _detected(values: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    top = np.argsort(-values, kind="stable")[: clean.sum()]
    return {"auc": float(roc_auc_score(clean, values)), "recall": float(clean[top].mean())}


def _mean(results: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(float(np.mean([r[key] for r in results])), 4) for key in results[0]}


def _means(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {name: _mean([run[name] for run in runs]) for name in runs[0]}


if __name__ == "__main__":
    main()
