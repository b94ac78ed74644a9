"""Train a LoRA adapter with peft and transformers' own loop; resumable, seeded, offline."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from forvalue_dagster.data.batching import pad
from forvalue_dagster.data.chat import ConversationEncoder, EncodedRow, Encoding
from forvalue_dagster.models.config import ModelConfig
from forvalue_dagster.models.loading import load_base, make_encoder, window_of
from forvalue_dagster.models.warm_up_config import WarmUp

_IGNORED = -100  # the label that transformers' losses leave out
_CHECKPOINTS = 4
_ADVICE = "lower the learning rate, or train in float32 or bfloat16."


class WarmUpError(RuntimeError):
    """The adapter cannot be trained; the message says why."""


def train_adapter(
    config: ModelConfig,
    rows: pl.DataFrame,
    tokens: str,
    warm_up: WarmUp,
    folder: Path,
    log: Callable[[str], object] = lambda _: None,
) -> tuple[Path, list[int]]:
    """Train an adapter on canonical rows, with the loss on the tokens that valuation scores.

    A killed training goes on from its last checkpoint in `folder`; a finished one is returned at
    once. The head and the embeddings are not trained.

    Args:
        config: the base model, without an adapter.
        rows: canonical rows.
        tokens: train on "response" or "all" tokens.
        warm_up: how to train.
        folder: for checkpoints and the adapter; one folder for one configuration and set of rows.
        log: told of the loss.

    Returns:
        The folder of the adapter (adapter_config.json, adapter_model.safetensors), and the
        indices of the rows it was trained on.

    Raises:
        WarmUpError: if no row can be trained on, the loss or the adapter is not finite, or the
            model has an adapter already.
    """
    if config.adapter is not None:
        raise WarmUpError(
            f"The model has the adapter {config.adapter!r} already; expected none beside a "
            "warm-up. Merge it into the base model, or leave out the warm-up."
        )
    target, checkpoints = folder / "adapter", folder / "checkpoints"
    record = target / "rows.json"
    if not target.exists():
        model, processor = load_base(config)
        window = window_of(model, config.max_length)
        encoding = Encoding(tokens, window, config.chat_template)  # type: ignore[arg-type]
        encoder = make_encoder(processor, encoding)
        encoded = _encode(encoder, rows)
        if not encoded:
            raise WarmUpError(f"None of the {len(rows)} rows has tokens to train on.")
        chosen = _draw(encoded, warm_up)
        torch.manual_seed(warm_up.seed)
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=warm_up.rank,
            lora_alpha=warm_up.alpha or 2 * warm_up.rank,
            target_modules="all-linear",  # all but the head
        )
        adapted = get_peft_model(model, lora)
        # Left to itself, peft asks the hub about the vocabulary whenever it saves.
        adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
        collate = partial(_collate, row_aligned=encoder.row_aligned)
        _train(adapted, [encoded[index] for index in chosen], collate, warm_up, checkpoints, log)
        scratch = folder / "adapter.unfinished"
        adapted.peft_config["default"].base_model_name_or_path = config.name
        adapted.save_pretrained(scratch)
        (scratch / "README.md").unlink(missing_ok=True)  # an empty model card, with a local path
        (scratch / record.name).write_text(json.dumps(sorted(chosen)))
        scratch.rename(target)
    shutil.rmtree(checkpoints, ignore_errors=True)
    used: list[int] = json.loads(record.read_text())
    return target, used


def _encode(encoder: ConversationEncoder, rows: pl.DataFrame) -> dict[int, EncodedRow]:
    encoded = {}
    columns = rows.select("messages", "tools", "images", "problem").iter_rows()
    for index, (messages, tools, images, problem) in enumerate(columns):
        row = None if problem else encoder.encode(messages, tools, images)
        if isinstance(row, EncodedRow):
            encoded[index] = row
    return encoded


def _draw(encoded: dict[int, EncodedRow], warm_up: WarmUp) -> list[int]:
    """Draw rows in a seeded order until the token budget is reached."""
    order: list[int] = np.random.default_rng(warm_up.seed).permutation(list(encoded)).tolist()
    if warm_up.max_tokens is None:
        return order
    total = np.cumsum([len(encoded[index]) for index in order])
    if total[0] > warm_up.max_tokens:
        raise WarmUpError(f"max_tokens is {warm_up.max_tokens}, but a row drawn has {total[0]}.")
    return order[: int((total <= warm_up.max_tokens).sum())]


def _train(
    model: Any,
    rows: Sequence[EncodedRow],
    collate: Callable[[Sequence[EncodedRow]], dict[str, Tensor]],
    warm_up: WarmUp,
    checkpoints: Path,
    log: Callable[[str], object],
) -> None:
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
    # The last steps may go by unlogged.
    if not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):
        raise WarmUpError(f"The adapter is not finite after the last step; {_ADVICE}")


def _last_whole(checkpoints: Path) -> str | None:
    """Return the newest checkpoint, removing any that a kill left half written."""
    while newest := get_last_checkpoint(str(checkpoints)):
        try:
            json.loads((Path(newest) / "trainer_state.json").read_text())  # written last
            return str(newest)
        except (OSError, ValueError):
            shutil.rmtree(newest)
    return None


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Passes the loss on, and stops where it is not finite."""

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
    """Pad on the right, and label what is scored."""
    batch = pad(rows, range(len(rows)), row_aligned)
    labels = np.full(batch.input_ids.shape, _IGNORED)
    # The mask marks the position that predicts; transformers' losses shift the labels themselves.
    scored = batch.mask[:, :-1]
    labels[:, 1:][scored] = batch.input_ids[:, 1:][scored]
    arrays = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    arrays |= {"labels": labels, **batch.inputs}
    return {name: torch.as_tensor(values) for name, values in arrays.items()}
