"""Flags of a message that say whether it is trained on: 0 or false leaves a turn out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from forvalue_dagster.data.problems import RowError

# Keys under which 1 or true means that the turn is trained on; and the reverse.
_TRAINED = (
    *("weight", "train", "trained", "training", "trainable", "is_trainable", "train_on_turn"),
    *("loss", "loss_weight", "loss_scale", "loss_mask", "output_with_loss", "has_loss"),
    *("use_loss", "compute_loss", "calculate_loss", "include_in_loss", "learn", "supervised"),
)
_LEFT_OUT = (
    *("masked", "is_masked", "loss_masked", "no_loss", "skip_loss", "ignore_loss", "mask_loss"),
    *("no_train", "skip_training", "exclude_from_loss", "exclude_from_training"),
)
FLAGS = frozenset((*_TRAINED, *_LEFT_OUT))
_IN_PARTS = ("train_detail", "training_detail")
# A number under such a key is an unknown flag: `mask`, `loss_factor`.
_LIKE_A_FLAG = re.compile(
    r"(?i)(^|_)(loss|mask(ed|s)?|train(ed|ing|able)?|learn|weights?|supervised?)(_|$)"
)


def take_flags(message: dict[str, Any], where: str, *, speaks: bool) -> bool:
    """Remove the training flags from a message.

    Args:
        message: the message; it is changed.
        where: its place, for the error.
        speaks: whether it is an assistant's turn.

    Returns:
        Whether they leave the turn out.

    Raises:
        RowError: if a flag is between 0 and 1, or unknown.
    """
    out = False
    for name in [name for name in message if name.casefold() in FLAGS]:
        value = message.pop(name)
        if not isinstance(value, int | float) or value not in (0, 1):
            said = value if isinstance(value, int | float) else f"a {type(value).__name__}"
            raise RowError(
                f"{where}.{name} is {said}; expected 0 or 1: a turn is scored or left out, and "
                "nothing in between can be honoured",
                "weight",
            )
        out |= bool(value) == (name.casefold() in _LEFT_OUT)
    for name in _IN_PARTS:
        if message.pop(name, None):
            raise RowError(
                f"{where}.{name} trains parts of a turn; expected turns that are scored whole",
                "weight",
            )
    if speaks and (unknown := _unknown_flag(message)):
        raise RowError(
            f"{where}.{unknown} may say that the turn is trained, or that it is left out; expected "
            "train (true: it is scored) or masked (true: it is not). Rename it",
            "weight",
        )
    return out


def _unknown_flag(message: Mapping[str, Any]) -> str | None:
    for name, value in message.items():
        # A sentence is not a key's name, and no error quotes a row's text.
        if not name.isidentifier() or not _LIKE_A_FLAG.search(name):
            continue
        values = value if isinstance(value, list | tuple) else (value,)
        if values and all(isinstance(one, int | float) for one in values):
            return name
    return None
