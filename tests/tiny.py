"""Tiny models and a tokenizer, made offline: the real classes of transformers, random weights."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from forvalue_dagster.models.loading import LoadedModel, prepare_model

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIAL_TOKENS)

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2}
_HEADS = _GROUPED | {"head_dim": 8}
_GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_EXPERTS = _GROUPED | {"num_experts_per_tok": 2}

# name → (model type, configuration). What each is here for stands beside it.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GROUPED),
    "llama-tied": ("llama", _GROUPED | {"tie_word_embeddings": True}),
    "mistral": ("mistral", _GROUPED),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", _HEADS),
    "gemma2": (  # soft-capped logits, tied
        "gemma2",
        _HEADS | {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    ),
    "gemma3": ("gemma3_text", _HEADS | {"query_pre_attn_scalar": 8}),
    "recurrent-gemma": (  # soft cap under another name, no attention in some layers
        "recurrent_gemma",
        _SIZES | {"lru_width": 32, "attention_window_size": 16, "head_dim": 8},
    ),
    "cohere": ("cohere", _GROUPED | {"logit_scale": 0.0625}),
    "cohere2": ("cohere2", _GROUPED | {"logit_scale": 0.25}),
    "granite": ("granite", _GROUPED | {"logits_scaling": 8.0}),
    "hyperclovax": ("hyperclovax", _HEADS | {"logits_scaling": 0.125}),  # multiplies
    "falcon-h1": (  # head multiplier, state-space layers
        "falcon_h1",
        _GROUPED
        | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
        | {"lm_head_multiplier": 0.04},
    ),
    "gpt2": ("gpt2", _GPT),  # absolute positions
    "gptj": ("gptj", _GPT | {"rotary_dim": 8}),  # head with bias
    "phi": ("phi", _SIZES),  # head with bias
    "opt": (  # projects before the head: its width is not the model's
        "opt",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": 512,
            "do_layer_norm_before": False,
        },
    ),
    "mixtral": ("mixtral", _EXPERTS | {"num_local_experts": 4}),
    "qwen2-moe": (
        "qwen2_moe",
        _EXPERTS
        | {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "minicpm3": (  # scales the hidden state before the head
        "minicpm3",
        _SIZES
        | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
        | {"v_head_dim": 8, "head_dim": 8, "dim_model_base": 16, "num_key_value_heads": 4},
    ),
    "olmo2": ("olmo2", _GROUPED),
    "bloom": (
        "bloom",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
}


def tiny_model(family: str = "llama", dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A model with weights large enough that predictions are far from uniform."""
    kind, settings = FAMILIES[family]
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoConfig.for_model(kind, **settings)
        # The grouped kernels of mixtures of experts know no float64.
        config._experts_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config)
    model = model.to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
    return model


@cache
def byte_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS[1:])})
    fast.chat_template = chat_template
    return fast


def tiny_loaded(
    family: str = "llama", dtype: torch.dtype = torch.float64, **options: Any
) -> LoadedModel:
    """A tiny model ready for the pass."""
    return prepare_model(tiny_model(family, dtype), byte_tokenizer(), **options)
