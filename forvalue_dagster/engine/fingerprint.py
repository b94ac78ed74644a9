"""Fingerprints: the model and options that a feature table or a profile was made with."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from forvalue_dagster.data.templates import asks_for_date, says_more_than_text
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.options.valuation import ValuationOptions

# Increased when the meaning of stored features changes.
FEATURES_VERSION = 3
# Increased when other tokens of calls, or of a template's own blocks, become the response.
MASK_VERSION = 2


class FingerprintMismatchError(ValueError):
    """Features and a profile come from different models or options; the message says which."""


def fingerprint(loaded: LoadedModel, options: ValuationOptions) -> str:
    """Return everything that decides features, as JSON of names and short values."""
    own = (loaded.processor, loaded.tokenizer)
    templates = [loaded.chat_template, *(getattr(one, "chat_template", None) for one in own)]
    template = next((template for template in templates if template), "")
    parts: dict[str, Any] = {
        "code version": FEATURES_VERSION,
        "weights": loaded.fingerprint.weights,
        "adapter": loaded.fingerprint.adapter,
        "tokenizer": loaded.fingerprint.tokenizer,
        "dtype": str(loaded.unembedding.weight.dtype).removeprefix("torch."),
        "chat template": sha256(str(template).encode()).hexdigest()[:16],
        "max_length": loaded.max_length,
        "tokens": options.tokens,
        "top_errors": options.features.top_errors,
        "hidden": options.features.hidden,
    }
    if asks_for_date(str(template)):
        parts["template date"] = loaded.template_date
    if says_more_than_text(str(template)):
        parts["response mask"] = MASK_VERSION
    if loaded.fingerprint.processor is not None:
        parts["processor"] = loaded.fingerprint.processor
    return json.dumps(parts, sort_keys=True)


def refuse_mismatch(features: str, profile: str) -> None:
    """Raise unless features and profile were made with the same model and options.

    Raises:
        FingerprintMismatchError: naming each part that differs, with both values.
    """
    if features == profile:
        return
    ours, theirs = json.loads(features), json.loads(profile)
    different = [
        f"{name} ({ours.get(name)} in the features, {theirs.get(name)} in the profile)"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    raise FingerprintMismatchError(
        f"The features do not fit the validation profile: {', '.join(different)} differ. Compute "
        "the older of the two again with the model and options of the other."
    )
