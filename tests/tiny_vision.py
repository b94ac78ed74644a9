"""Tiny vision-language models and processors, made offline: transformers' own classes.

Processors that also take videos need torchvision for that part. It is not here, so Qwen's are
built without it; what they do with images and text is their own code.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.tiny import SPECIAL_TOKENS, byte_tokenizer

_TEMPLATE = (
    "BOS{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
# The tokens that a family's template or processor writes without asking the tokenizer.
_BESIDES = (
    "<|vision_start|>",
    "<|vision_end|>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
)
_PINPOINTS = [[28, 56], [56, 28], [56, 56]]


class _QwenProcessor(hf.Qwen2_5_VLProcessor):
    """Qwen2.5-VL's, without videos."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: Any = None) -> None:
        self.image_token, self.video_token = tokenizer.image_token, tokenizer.video_token
        self.image_token_id = tokenizer.image_token_id
        self.video_token_id = tokenizer.video_token_id
        hf.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def _tokenizer(**tokens: str) -> Any:
    """The byte tokenizer with a family's tokens, named as its processor expects them."""
    backend = Tokenizer.from_str(byte_tokenizer(None).backend_tokenizer.to_str())
    backend.add_special_tokens([*SPECIAL_TOKENS, *_BESIDES])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=tokens,
    )


def _llava() -> tuple[Any, Any]:
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        _tokenizer(image_token="<image>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("<image>"),
    )
    return processor, hf.LlavaConfig(
        text_config={"model_type": "llama", **_text(processor)},
        vision_config={"model_type": "clip_vision_model", "projection_dim": 16, **_VISION},
        image_token_index=processor.image_token_id,
        image_seq_length=4,
    )


def _llava_next() -> tuple[Any, Any]:
    processor = hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 28},
            crop_size={"height": 28, "width": 28},
            image_grid_pinpoints=_PINPOINTS,
        ),
        _tokenizer(image_token="<image>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("<image>"),
    )
    return processor, hf.LlavaNextConfig(
        text_config={"model_type": "mistral", **_text(processor)},
        vision_config={"model_type": "clip_vision_model", "projection_dim": 16, **_VISION},
        image_token_index=processor.image_token_id,
        image_grid_pinpoints=_PINPOINTS,
    )


def _qwen(version: str) -> tuple[Any, Any]:
    processor = _QwenProcessor(
        hf.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024),
        _tokenizer(image_token="<|image_pad|>", video_token="<|video_pad|>"),
        chat_template=_template("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    ids = processor.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    text = {**_text(processor), "rope_parameters": _MROPE}
    vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32}
    make: Any = hf.Qwen2_5_VLConfig
    if version == "3":
        make, vision = hf.Qwen3VLConfig, vision | {"deepstack_visual_indexes": [0]}
        vision |= {"num_position_embeddings": 16, "intermediate_size": 24}
    else:
        vision |= {"fullatt_block_indexes": [1], "window_size": 16, "intermediate_size": 24}
    return processor, make(
        text_config=text,
        vision_config=vision,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_start_token_id=ids[0],
        vision_end_token_id=ids[1],
    )


def _idefics3() -> tuple[Any, Any]:
    processor = hf.Idefics3Processor(
        hf.Idefics3ImageProcessorPil(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
        ),
        _tokenizer(
            image_token="<image>",
            fake_image_token="<fake_token_around_image>",
            global_image_token="<global-img>",
            end_of_utterance_token="<end_of_utterance>",
        ),
        image_seq_len=1,
        chat_template=_template("<image>"),
    )
    return processor, hf.Idefics3Config(
        text_config={"model_type": "llama", **_text(processor)},
        vision_config=_VISION,
        image_token_id=processor.image_token_id,
        scale_factor=2,
    )


def _gemma3() -> tuple[Any, Any]:
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        _tokenizer(
            image_token="<image_soft_token>",
            boi_token="<start_of_image>",
            eoi_token="<end_of_image>",
        ),
        image_seq_length=4,
        chat_template=_template("<start_of_image>"),
    )
    return processor, hf.Gemma3Config(
        text_config={**_text(processor), "query_pre_attn_scalar": 8, "sliding_window": 16},
        vision_config=_VISION | {"vision_use_head": False},
        image_token_index=processor.tokenizer.image_token_id,
        mm_tokens_per_image=4,
    )


def _mllama() -> tuple[Any, Any]:
    processor = hf.MllamaProcessor(
        hf.MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=4),
        _tokenizer(image_token="<|image|>", python_tag="<|python_tag|>"),
        chat_template=_template("<|image|>", bos="<|endoftext|>"),
    )
    image = processor.image_token_id
    assert image == len(processor.tokenizer) - 2
    text = _text(processor) | {
        "num_hidden_layers": 3,
        "cross_attention_layers": [1],
        # As in the released models: the head knows no image token, the embedding does.
        "vocab_size": image,
    }
    return processor, hf.MllamaConfig(
        text_config=text,
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_output_dim": 32,
            "intermediate_layers_indices": [0],
        },
        image_token_index=image,
    )


def _text(processor: Any) -> dict[str, Any]:
    return _TEXT | {"vocab_size": len(processor.tokenizer)}


def _template(image: str, bos: str = "") -> str:
    return _TEMPLATE.replace("IMAGE", image).replace("BOS", bos)


VISION_FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": _llava,
    "llava-next": _llava_next,
    "qwen2.5-vl": lambda: _qwen("2.5"),
    "qwen3-vl": lambda: _qwen("3"),
    "idefics3": _idefics3,
    "gemma3": _gemma3,
    "mllama": _mllama,
}


def tiny_vision_model(
    family: str, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Any, Any]:
    """A model that attends to its images visibly, and its processor."""
    processor, config = VISION_FAMILIES[family]()
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = hf.AutoModelForImageTextToText.from_config(config)
    model = model.to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
            if name.endswith("mm_input_projection_weight"):  # zero in a new Gemma 3
                parameter.normal_()
            if "gate" in name and parameter.dim() == 1:  # closed in a new mllama
                parameter.fill_(0.7)
    return model, processor


def save_tiny_vision_model(folder: Path, family: str) -> Path:
    """A directory that transformers loads."""
    model, processor = tiny_vision_model(family, torch.float32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(seed: int, width: int = 40, height: int = 30) -> bytes:
    """A PNG of coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()
