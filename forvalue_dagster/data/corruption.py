"""Rows damaged on purpose: a known share of a training set, or copies of every trusted row."""

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import polars as pl

from forvalue_dagster.data.recipes import NOISE_RECIPES, InapplicableRecipeError


def corrupt_responses(
    responses: Sequence[str],
    share: float,
    seed: int,
    recipes: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> list[tuple[str, str | None]]:
    """Damage exactly `round(share * len(responses))` responses.

    The damaged rows take the recipes in turn. A row whose turn is a recipe that cannot change it
    takes the next recipe that can.

    Args:
        responses: The responses of all rows.
        share: The share of rows to damage, from 0 to 1.
        seed: The seed of the choice of rows, donors and damage.
        recipes: The names of the recipes to use, or None for all registered ones.
        groups: The group of every row (for instance its task). If given, donors come from other
            groups, so that a swapped answer cannot be right by chance.

    Returns:
        For every row, in order, its text and the name of the recipe applied, or None.

    Raises:
        ValueError: If the share is outside 0 to 1, a recipe is unknown or none is named, the
            groups do not match the responses, or no recipe can change a chosen row.
    """
    names = _known(recipes)
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, got {share}")
    if groups is not None and len(groups) != len(responses):
        raise ValueError(f"{len(groups)} groups for {len(responses)} responses")
    rng = np.random.default_rng(seed)
    result: list[tuple[str, str | None]] = [(text, None) for text in responses]
    chosen = rng.permutation(len(responses))[: round(share * len(responses))]
    for turn, row in enumerate(chosen.tolist()):
        donors = [
            text
            for other, text in enumerate(responses)
            if text != responses[row] and (groups is None or groups[other] != groups[row])
        ]
        # Without a donor the recipes that need none still work; the others refuse an empty one.
        donor = donors[int(rng.integers(len(donors)))] if donors else ""
        result[row] = _first_that_works(names, turn, responses[row], donor, rng)
    return result


def _first_that_works(
    names: Sequence[str], turn: int, response: str, donor: str, rng: np.random.Generator
) -> tuple[str, str]:
    for step in range(len(names)):
        name = names[(turn + step) % len(names)]
        try:
            return NOISE_RECIPES[name](response, donor, rng), name
        except InapplicableRecipeError:
            continue
    raise InapplicableRecipeError(
        f"none of the recipes {list(names)} can change a response of {len(response)} characters"
    )


def corrupted_copies(
    rows: pl.DataFrame,
    recipes: Sequence[str] | None = None,
    seed: int = 0,
    per_row: int | None = None,
) -> pl.DataFrame:
    """Copy every row, each copy with its last response damaged by another recipe.

    A copy depends on its row's content, the recipe and the seed; its donor also on the other
    rows. Where a recipe cannot change a response that copy is left out.

    Args:
        rows: canonical rows; those with a `problem` or without a response have no copies.
        recipes: names, or None for all registered ones.
        seed: of the damage.
        per_row: copies of each row, by recipes drawn for it; None for all recipes.

    Returns:
        Canonical rows, with `copy_of` (the index of the row in `rows`) and `recipe`.

    Raises:
        ValueError: if a recipe is unknown.
    """
    names = _known(recipes)
    conversations = [
        None if problem else json.loads(messages)
        for messages, problem in rows.select("messages", "problem").iter_rows()
    ]
    turns = [_last_response(conversation) for conversation in conversations]
    responses = [
        "" if turn is None or conversation is None else conversation[turn]["content"]
        for turn, conversation in zip(turns, conversations, strict=True)
    ]
    donors = sorted({text for text in responses if text.strip()})
    copies: list[tuple[int, str, str]] = []
    for index, (turn, response) in enumerate(zip(turns, responses, strict=True)):
        original = conversations[index]
        if turn is None or original is None:
            continue
        made = 0
        for name in _generator(seed, "order", rows["sample_id"][index]).permutation(names).tolist():
            if made == per_row:
                break
            rng = _generator(seed, name, rows["sample_id"][index])
            others = [text for text in donors if text != response]
            donor = others[int(rng.integers(len(others)))] if others else ""
            try:
                damaged = NOISE_RECIPES[name](response, donor, rng)
            except InapplicableRecipeError:
                continue
            conversation = [dict(message) for message in original]
            conversation[turn]["content"] = damaged
            copies.append((index, name, json.dumps(conversation, ensure_ascii=False)))
            made += 1
    table = pl.DataFrame(
        copies,
        schema={"copy_of": pl.Int64, "recipe": pl.String, "messages": pl.String},
        orient="row",
    )
    return rows[table["copy_of"].to_list()].drop("messages").hstack(table)


def _generator(seed: int, purpose: str, sample_id: str) -> np.random.Generator:
    key = sha256(f"{seed}\n{purpose}\n{sample_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(key[:8], "little"))


def _last_response(conversation: list[dict[str, Any]] | None) -> int | None:
    """Return the index of the last assistant turn with text."""
    spoken = [
        index
        for index, message in enumerate(conversation or ())
        if message["role"] == "assistant" and message["content"].strip()
    ]
    return spoken[-1] if spoken else None


def _known(recipes: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(NOISE_RECIPES if recipes is None else recipes)
    unknown = sorted(set(names) - set(NOISE_RECIPES))
    if unknown or not names:
        raise ValueError(f"no such noise recipes: {unknown}; known: {sorted(NOISE_RECIPES)}")
    return names
