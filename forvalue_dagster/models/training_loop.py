"""Train an adapter with peft and the training loop of transformers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from forvalue_dagster.data.batching import pad
from forvalue_dagster.data.chat import EncodedRow
from forvalue_dagster.models.errors import WarmUpError
from forvalue_dagster.options.warm_up import WarmUp

_IGNORED = -100  # the label that transformers' losses leave out
_CHECKPOINTS = 4
_ADVICE = "lower the learning rate, or train in float32 or bfloat16."


def new_adapter(model: Any, warm_up: WarmUp) -> Any:
    """Put an untrained LoRA adapter on a model."""
    torch.manual_seed(warm_up.seed)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=warm_up.rank,
        lora_alpha=warm_up.alpha or 2 * warm_up.rank,
        target_modules="all-linear",  # all but the head
    )
    adapted = get_peft_model(model, lora)
    # By default peft asks the hub about the vocabulary whenever it saves.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def train_on(
    model: Any,
    rows: Sequence[EncodedRow],
    row_aligned: Collection[str],
    warm_up: WarmUp,
    checkpoints: Path,
    log: Callable[[str], object],
) -> None:
    """Train an adapter; continues from the last checkpoint if there is one.

    Args:
        model: the model with the adapter.
        rows: encoded rows of one encoder.
        row_aligned: the encoder's `row_aligned`.
        warm_up: the training options.
        checkpoints: folder of checkpoints.
        log: logger for the loss.

    Raises:
        WarmUpError: if the loss or the adapter is not finite.
    """
    collate = partial(_collate, row_aligned=row_aligned)
    steps = math.ceil(len(rows) / warm_up.batch_rows) * warm_up.epochs
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=warm_up.batch_rows,
        num_train_epochs=warm_up.epochs,
        learning_rate=warm_up.learning_rate,
        seed=warm_up.seed,
        save_strategy="steps",
        save_steps=max(1, int(steps // _CHECKPOINTS)),
        save_total_limit=1,
        logging_steps=max(1, int(steps // 20)),
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        use_cpu=model.device.type == "cpu",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, collate, list(rows), callbacks=[_Watch(log)])
    trainer.remove_callback(PrinterCallback)
    if started := _last_whole(checkpoints):
        log(f"Going on from {Path(started).name}.")
    trainer.train(resume_from_checkpoint=started)
    # The last steps may not be logged.
    if not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):
        raise WarmUpError(f"The adapter is not finite after the last step; {_ADVICE}")


def _last_whole(checkpoints: Path) -> str | None:
    """Return the newest checkpoint; remove any that a killed process left half written."""
    while newest := get_last_checkpoint(str(checkpoints)):
        try:
            json.loads((Path(newest) / "trainer_state.json").read_text())  # written last
            return str(newest)
        except (OSError, ValueError):
            shutil.rmtree(newest)
    return None


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Logs the loss, and stops if it is not finite."""

    def __init__(self, log: Callable[[str], object]) -> None:
        self._log = log

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise WarmUpError(f"The loss is {loss} at step {state.global_step}; {_ADVICE}")
        self._log(f"Warm-up, step {state.global_step} of {state.max_steps}: loss {loss:.3f}")


def _collate(rows: Sequence[EncodedRow], row_aligned: Collection[str]) -> dict[str, Tensor]:
    """Pad on the right, and label the scored tokens."""
    batch = pad(rows, range(len(rows)), row_aligned)
    labels = np.full(batch.input_ids.shape, _IGNORED)
    # The mask marks the predicting position; transformers' losses shift the labels themselves.
    scored = batch.mask[:, :-1]
    labels[:, 1:][scored] = batch.input_ids[:, 1:][scored]
    arrays = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    arrays |= {"labels": labels, **batch.inputs}
    return {name: torch.as_tensor(values) for name, values in arrays.items()}
