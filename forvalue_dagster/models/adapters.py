"""Load PEFT adapters and merge them into a model, with the tokenizer they were trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import AutoTokenizer
from transformers.utils import cached_file

from forvalue_dagster.models.errors import ModelLoadError
from forvalue_dagster.models.fingerprint import fingerprint_tensors
from forvalue_dagster.options.model import ModelConfig
from forvalue_dagster.valuation.unembedding import output_head


def with_adapter(
    model: nn.Module, processor: Any, config: ModelConfig
) -> tuple[nn.Module, Any, str]:
    """Put a PEFT adapter on the model and merge it, so that the head is a plain layer again.

    If the adapter was trained with added tokens, its tokenizer, its chat template and the size of
    its embeddings are used.

    Returns:
        The merged model, its tokenizer or processor, and the hash of the adapter's tensors.

    Raises:
        ModelLoadError: if it cannot be merged into this model.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    adapter = str(config.adapter)
    try:
        kind = PeftConfig.from_pretrained(adapter, local_files_only=config.local_files_only)
        if kind.is_prompt_learning:
            raise ValueError(f"{kind.peft_type} prepends virtual tokens, which cannot be merged")
        processor = _with_own_tokenizer(processor, model, config)
        # Merging into a head that shares the input embedding's weight would change the input too.
        _untie_head(model)
        adapted = PeftModel.from_pretrained(
            model, adapter, local_files_only=config.local_files_only
        )
        digest = fingerprint_tensors(
            # Embeddings, if any, are in the merged weights; looking for them would ask the hub.
            get_peft_model_state_dict(adapted, save_embedding_layers=False)
        )
        merged: nn.Module = adapted.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, RuntimeError) as error:
        exists = "exists" if Path(adapter).exists() else "is no local directory"
        raise ModelLoadError(
            f"Adapter {adapter!r} ({exists}) cannot be put on {config.name!r}: {error}. Expected "
            "a PEFT adapter with adapter_config.json and safetensors weights, trained on this "
            "model."
        ) from error
    return merged, processor, digest


def _with_own_tokenizer(processor: Any, model: nn.Module, config: ModelConfig) -> Any:
    """Return the adapter's tokenizer, if it has one, with the model resized to its embeddings.

    Raises:
        ValueError: if it has tokens that neither the model nor the adapter has embeddings for.
    """
    base = getattr(processor, "tokenizer", processor)
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    sizes = _embedding_sizes(model, config) or {embeddings.num_embeddings}
    if len(sizes) > 1:
        raise ValueError(f"its embedding and its head have {sorted(sizes)} tokens")
    size = sizes.pop()
    tokenizer = base
    if _file(config, "tokenizer_config.json"):
        tokenizer = AutoTokenizer.from_pretrained(
            str(config.adapter), local_files_only=config.local_files_only
        )
        tokenizer.chat_template = tokenizer.chat_template or base.chat_template
    if size < len(tokenizer) > len(base):
        raise ValueError(
            f"its tokenizer has {len(tokenizer)} tokens, but the model has embeddings for {size} "
            "and the adapter brings none (modules_to_save, or save_embedding_layers when it is "
            "saved)"
        )
    if size != embeddings.num_embeddings:
        model.resize_token_embeddings(size, mean_resizing=False)  # type: ignore[operator]
    if tokenizer is base or processor is base:
        return tokenizer if processor is base else processor
    processor.tokenizer = tokenizer
    return processor


def _embedding_sizes(model: nn.Module, config: ModelConfig) -> set[int]:
    """Return the number of tokens in the adapter's own embedding and head."""
    weights = _file(config, "adapter_model.safetensors")
    if weights is None:
        return set()
    parts = (model.get_input_embeddings(), output_head(model))  # type: ignore[operator]
    places = {name for name, module in model.named_modules() if module in parts}
    with safe_open(weights, framework="pt") as tensors:
        # Tied weights may have either name.
        return {
            tensors.get_slice(name).get_shape()[0]
            for name in tensors.keys()  # noqa: SIM118
            if any(name.endswith((f".{p}.weight", f".{p}.base_layer.weight")) for p in places)
        }


def _file(config: ModelConfig, name: str) -> str | None:
    try:
        path: str | None = cached_file(
            str(config.adapter), name, local_files_only=config.local_files_only
        )
    except OSError:
        return None
    return path


def _untie_head(model: nn.Module) -> None:
    head = output_head(model)
    if head.weight is model.get_input_embeddings().weight:  # type: ignore[operator]
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]
