"""The digit reader as a directory that transformers loads: LLaVA over the embedded model.

The language model is SmolLM2-135M-Instruct, untouched; the vision encoder and the projector are
this project's own (`train.py`) and lie beside this file.
"""

import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

import forvalue_dagster as fv

WEIGHTS = Path(__file__).with_name("weights.safetensors")
WEIGHTS_SHA256 = "e5e85e7b29dc0f0d7052f2eeca7ef2fb089798e775c2cf9a87cb989dfe0d964c"
# Parameters under these names are trained; the others are the language model's.
TRAINED = ("model.vision_tower.", "model.multi_modal_projector.")
SIDE, PATCH = 16, 8
IMAGE_TOKEN = "<image>"
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def digit_reader_directory() -> Path:
    """Return the model's directory, putting it together on the first call (half a gigabyte)."""
    if sha256(WEIGHTS.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise RuntimeError(f"{WEIGHTS} is not the file that train.py wrote; check it out again.")
    language = fv.embedded_model_directory()
    target = language.parent / f"digit-reader-{WEIGHTS_SHA256[:12]}"
    if not target.is_dir():
        model, processor = untrained(language)
        missing, unexpected = model.load_state_dict(load_file(WEIGHTS), strict=False)
        assert not unexpected
        assert not [name for name in missing if name.startswith(TRAINED)]
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            whole = Path(scratch) / "model"
            model.save_pretrained(whole)
            processor.save_pretrained(whole)
            try:
                whole.rename(target)
            except OSError:
                # Another process was first; its directory is the same.
                if not target.is_dir():
                    raise
    return target


def untrained(language: Path) -> tuple[Any, Any]:
    """Put a new encoder and projector in front of a language model; return it and its processor."""
    tokenizer = AutoTokenizer.from_pretrained(
        language, extra_special_tokens={"image_token": IMAGE_TOKEN}
    )
    decoder = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    # No text ever holds the image's token, and its place is taken by the image.
    decoder.get_input_embeddings().weight.data[tokenizer.image_token_id] = 0
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=128,
        image_size=SIDE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=decoder.config,
        image_token_index=tokenizer.image_token_id,
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(decoder.model.state_dict())
    model.tie_weights()
    model.generation_config = decoder.generation_config
    side = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(
            size=side,
            do_center_crop=False,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    return model.eval(), processor
