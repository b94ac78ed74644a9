"""A LoRA adapter trained on rows; resumable, seeded, offline.

Modules that load torch are imported when the adapter is trained (`training_loop.py`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from forvalue_dagster.data.chat import (
    ConversationEncoder,
    EncodedRow,
    Encoding,
    SkippedRow,
)
from forvalue_dagster.data.skip_reasons import counted
from forvalue_dagster.models.errors import WarmUpError
from forvalue_dagster.options.model import ModelConfig
from forvalue_dagster.options.warm_up import WarmUp


def train_adapter(
    config: ModelConfig,
    rows: pl.DataFrame,
    tokens: str,
    warm_up: WarmUp,
    folder: Path,
    log: Callable[[str], object] = lambda _: None,
) -> tuple[Path, list[int]]:
    """Train an adapter on canonical rows, with the loss on the tokens that valuation scores.

    A killed training continues from its last checkpoint in `folder`; a finished one is returned
    at once. The head and the embeddings are not trained.

    Args:
        config: the base model, without an adapter.
        rows: canonical rows.
        tokens: train on "response" or "all" tokens.
        warm_up: the training options.
        folder: folder of checkpoints and adapter; each configuration and set of rows needs its own.
        log: logger for the loss.

    Returns:
        The folder of the adapter (adapter_config.json, adapter_model.safetensors), and the
        indices of the rows it was trained on.

    Raises:
        WarmUpError: if no row can be trained on, the loss or the adapter is not finite, or the
            model has an adapter already.
    """
    from forvalue_dagster.models.loading import load_base, make_encoder, resolve_template, window_of
    from forvalue_dagster.models.training_loop import new_adapter, train_on

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
        template = resolve_template(processor, config.chat_template, config.template_date)
        encoding = Encoding(tokens, window, template, config.template_date)  # type: ignore[arg-type]
        encoder = make_encoder(processor, encoding)
        encoded, skipped = _encode(encoder, rows)
        if not encoded:
            raise WarmUpError(
                f"None of the {len(rows)} rows has tokens to train on. Skipped: {counted(skipped)}."
            )
        chosen = _draw(encoded, warm_up)
        adapted = new_adapter(model, warm_up)
        chosen_rows = [encoded[index] for index in chosen]
        train_on(adapted, chosen_rows, encoder.row_aligned, warm_up, checkpoints, log)
        scratch = folder / "adapter.unfinished"
        adapted.peft_config["default"].base_model_name_or_path = config.name
        adapted.save_pretrained(scratch)
        (scratch / "README.md").unlink(missing_ok=True)  # an empty model card, with a local path
        (scratch / record.name).write_text(json.dumps(sorted(chosen)))
        scratch.rename(target)
    shutil.rmtree(checkpoints, ignore_errors=True)
    used: list[int] = json.loads(record.read_text())
    return target, used


def _encode(
    encoder: ConversationEncoder, rows: pl.DataFrame
) -> tuple[dict[int, EncodedRow], list[str]]:
    """Return the rows that can be trained on, and why each other one is skipped."""
    encoded, skipped = {}, []
    columns = rows.select("messages", "tools", "images", "problem").iter_rows()
    for index, (messages, tools, images, problem) in enumerate(columns):
        row = SkippedRow("unreadable") if problem else encoder.encode(messages, tools, images)
        if isinstance(row, EncodedRow):
            encoded[index] = row
        else:
            skipped.append(row.reason)
    return encoded, skipped


def _draw(encoded: dict[int, EncodedRow], warm_up: WarmUp) -> list[int]:
    """Draw rows in a seeded order until the token budget is reached."""
    order: list[int] = np.random.default_rng(warm_up.seed).permutation(list(encoded)).tolist()
    if warm_up.max_tokens is None:
        return order
    total = np.cumsum([len(encoded[index]) for index in order])
    if total[0] > warm_up.max_tokens:
        raise WarmUpError(f"max_tokens is {warm_up.max_tokens}, but a row drawn has {total[0]}.")
    return order[: int((total <= warm_up.max_tokens).sum())]
