"""Hashes of a loaded model: weights and tokenizer, by content and not by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_LENGTH = 16


@dataclass(frozen=True)
class ModelFingerprint:
    """Short hashes of a loaded model.

    Attributes:
        weights: hash of every parameter and buffer, adapters merged.
        tokenizer: hash of the tokenizer's full definition.
        adapter: hash of the adapter's tensors before the merge, or None.
        processor: hash of the settings that prepare images, or None.
    """

    weights: str
    tokenizer: str
    adapter: str | None
    processor: str | None = None


def fingerprint_model(
    model: nn.Module, tokenizer: Any, adapter: str | None, processor: Any = None
) -> ModelFingerprint:
    """Hash a loaded model; about a second for each gigabyte."""
    text = tokenizer.backend_tokenizer.to_str() + repr(sorted(tokenizer.special_tokens_map.items()))
    return ModelFingerprint(
        weights=fingerprint_tensors(model.state_dict()),
        tokenizer=_short(text),
        adapter=adapter,
        processor=None if processor is None else _short(processor.to_json_string()),
    )


def _short(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:_LENGTH]


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, dtypes, shapes and bytes, whatever the order of the names."""
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()[:_LENGTH]


def fingerprint_files(paths: Iterable[Path]) -> str:
    """Hash the content of small files, in order."""
    digest = sha256()
    for path in paths:
        digest.update(sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:_LENGTH]
