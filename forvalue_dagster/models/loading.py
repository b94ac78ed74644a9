"""Load a language model or vision-language model, and verify its unembedding."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from forvalue_dagster.data.chat import ConversationEncoder, Encoding
from forvalue_dagster.data.templates import PLAIN, chosen_templates
from forvalue_dagster.data.vision import VisionEncoder
from forvalue_dagster.models.adapters import with_adapter
from forvalue_dagster.models.embedded import embedded_model_directory
from forvalue_dagster.models.errors import ModelLoadError
from forvalue_dagster.models.fingerprint import ModelFingerprint, fingerprint_model
from forvalue_dagster.options.model import EMBEDDED, SPREAD, TEMPLATE_DATE, ModelConfig
from forvalue_dagster.valuation.unembedding import Unembedding, verified_unembedding

LONGEST_DEFAULT_WINDOW = 4096


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for the pass: in evaluation mode, its unembedding verified.

    Attributes:
        model: a transformers causal language model or vision-language model, adapters merged.
        tokenizer: its tokenizer.
        unembedding: W, b and f, verified against the model's own logits.
        max_length: the window, in tokens.
        chat_template: the configured template: its text, or "plain"; None for the tokenizer's.
        template_date: date (ISO) for a template that asks for today's date.
        adapter: hash of the adapter that was merged into the model, or None.
        processor: processor of images and text, for a vision-language model.
    """

    model: nn.Module
    tokenizer: Any
    unembedding: Unembedding
    max_length: int
    chat_template: str | None = None
    adapter: str | None = None
    processor: Any = None
    template_date: str = TEMPLATE_DATE

    @property
    def device(self) -> torch.device:
        """The device of the unembedding, where the pass runs."""
        return self.unembedding.weight.device

    @cached_property
    def fingerprint(self) -> ModelFingerprint:
        """Hashes of weights, adapter and tokenizer, taken when first asked for."""
        return fingerprint_model(self.model, self.tokenizer, self.adapter, self.processor)

    def encoder(
        self, tokens: Literal["response", "all"], remembered_images: int = 0
    ) -> ConversationEncoder:
        """Return the encoder of canonical rows for this model (`data.chat`, `data.vision`)."""
        known = self.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        vocabulary = min(known, self.unembedding.vocabulary_size)
        encoding = Encoding(
            tokens, self.max_length, self.chat_template, self.template_date, vocabulary
        )
        return make_encoder(self.processor or self.tokenizer, encoding, remembered_images)


def make_encoder(
    processor: Any, encoding: Encoding, remembered_images: int = 0
) -> ConversationEncoder:
    """Return the encoder for a tokenizer, or for a processor of images and text."""
    if hasattr(processor, "image_processor"):
        return VisionEncoder(processor, encoding, remembered_images)
    return ConversationEncoder(processor, encoding)


@lru_cache(maxsize=1)
def load_model(config: ModelConfig) -> LoadedModel:
    """Load a model; the last one stays in memory, so that steps of one process share it.

    Raises:
        ModelLoadError: if something is missing.
        UnknownUnembeddingError: if its logits are not a known function of the last hidden state.
    """
    model, processor = load_base(config)
    adapter = None
    if config.adapter is not None:
        model, processor, adapter = with_adapter(model, processor, config)
    loaded = prepare_model(
        model, processor, config.max_length, config.chat_template, config.template_date
    )
    return replace(loaded, adapter=adapter)


def load_base(config: ModelConfig) -> tuple[nn.Module, Any]:
    """Load the model on its device, without the adapter.

    Returns:
        The model, and its tokenizer; for a vision-language model, its processor.

    Raises:
        ModelLoadError: if something is missing.
    """
    path = str(embedded_model_directory()) if config.name == EMBEDDED else config.name
    options: dict[str, Any] = {
        "revision": config.revision,
        "local_files_only": config.local_files_only or config.name == EMBEDDED,
        "trust_remote_code": config.trust_remote_code,
    }
    attention = (
        {}
        if config.attn_implementation is None
        else {"attn_implementation": config.attn_implementation}
    )
    spread = config.device == SPREAD
    device = _device("auto" if spread else config.device)
    if config.quantization == "int4" and device.type == "cpu":
        # With bitsandbytes 0.50.2 it loads, but the embedded model is then worse than a guess.
        raise ModelLoadError(
            "quantization is 'int4' on the CPU, where its output was found wrong; expected a GPU. "
            "Use 'int8' or 'none'."
        )
    try:
        sees = _reads_images(AutoConfig.from_pretrained(path, **options))
        processor = (AutoProcessor if sees else AutoTokenizer).from_pretrained(path, **options)
        if config.quantization != "none":
            # Quantised weights cannot be moved afterwards.
            options |= {
                "quantization_config": BitsAndBytesConfig(
                    load_in_8bit=config.quantization == "int8",
                    load_in_4bit=config.quantization == "int4",
                ),
                "device_map": {"": device},
            }
        if spread:
            options["device_map"] = "auto"
        kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        dtype = _dtype(config.dtype, device)
        model = kind.from_pretrained(path, dtype=dtype, **attention, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ModelLoadError(
            f"Model {config.name!r} cannot be loaded: {error}. Expected a hub id, a directory "
            "with config.json, tokenizer.json and safetensors weights (and, if it reads images, "
            "the settings of its processor), or 'embedded'."
        ) from error
    placed = spread or config.quantization != "none"
    return model if placed else model.to(device), processor


def _reads_images(config: Any) -> bool:
    # Some families also have a text-only class; a model saved with images is used with them.
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def release_model() -> None:
    """Forget the model that `load_model` keeps, and give its memory back to the device."""
    load_model.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def prepare_model(
    model: nn.Module,
    processor: Any,
    max_length: int | None = None,
    chat_template: str | None = None,
    template_date: str = TEMPLATE_DATE,
) -> LoadedModel:
    """Make a model that is in memory ready for the pass, and verify its unembedding.

    Args:
        model: a transformers causal language model or vision-language model, on its device.
        processor: its tokenizer, or its processor of images and text.
        max_length: window in tokens; by default the model's own, at most 4,096.
        chat_template: a Jinja template, the path of one, the name of one of the tokenizer's, or
            "plain"; by default the tokenizer's.
        template_date: date (ISO) for a template that asks for today's date.

    Raises:
        ModelLoadError: if the template is unknown or broken, or the window longer than the model's.
    """
    template = resolve_template(processor, chat_template, template_date)
    model.eval().requires_grad_(False)
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    probe = torch.arange(min(embeddings.num_embeddings, 8), device=embeddings.weight.device)[None]
    unembedding = verified_unembedding(
        model, {"input_ids": probe, "attention_mask": torch.ones_like(probe)}
    )
    window = window_of(model, max_length)
    if hasattr(processor, "image_processor"):
        tokenizer, images = processor.tokenizer, processor
    else:
        tokenizer, images = processor, None
    return LoadedModel(
        model,
        tokenizer,
        unembedding,
        window,
        template,
        processor=images,
        template_date=template_date,
    )


def resolve_template(processor: Any, asked: str | None, day: str = TEMPLATE_DATE) -> str | None:
    """Return the text of the chat template that a configuration asks for.

    Returns:
        The text, "plain", or None for the tokenizer's own.

    Raises:
        ModelLoadError: if it is unknown, or if it, or the tokenizer's own, is broken.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    own = getattr(processor, "chat_template", None) or tokenizer.chat_template
    if asked is None and own is None:
        # The error comes when rows are encoded: a model may be loaded for something else.
        return None
    try:
        # The window may have any length: nothing is encoded.
        make_encoder(
            processor, Encoding(chat_template=asked, template_date=day)
        ).refuse_broken_template()
        if asked in (None, PLAIN):
            return asked
        return chosen_templates(asked, own)["default"]
    except ValueError as error:
        raise ModelLoadError(str(error)) from error


def window_of(model: nn.Module, max_length: int | None) -> int:
    """Return the window in tokens: the one asked for, or the model's own, at most 4,096.

    Raises:
        ModelLoadError: if it is longer than the model's own.
    """
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    own = getattr(config, "max_position_embeddings", None) or LONGEST_DEFAULT_WINDOW
    if max_length is not None and max_length > own:
        raise ModelLoadError(
            f"max_length is {max_length}, but the model's window is {own} tokens; lower it."
        )
    return max_length or min(own, LONGEST_DEFAULT_WINDOW)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype
