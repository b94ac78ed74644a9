"""Models of real shape with random weights, and rows of GSM8K's lengths, made without a network."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from forvalue_dagster.data.read import read_rows
from forvalue_dagster.models.loading import LoadedModel, prepare_model

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN = {"num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 32_768}

# Shapes as their public configurations have them.
CONFIGURATIONS = {
    "Qwen2.5-0.5B": Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        **_QWEN,
    ),
    "Qwen2.5-1.5B": Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        **_QWEN,
    ),
    "Llama-3.1-8B": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
        max_position_embeddings=32_768,
    ),
    "Gemma 3 270M": Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
    ),
    # For a machine without a card: shows that everything runs, and says nothing of speed.
    "tiny": Qwen2Config(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        **_QWEN,
    ),
}


def loaded_model(name: str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    torch.manual_seed(0)
    config = CONFIGURATIONS[name]
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, token, 0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return prepare_model(model, tokenizer())


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 4,000 tokens, trained on words like those of the rows."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = _Text(np.random.default_rng(1))
    bpe.train_from_iterator((text.sentence(200) for _ in range(200)), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=_SPECIAL[0], pad_token=_SPECIAL[0]
    )
    fast.add_special_tokens({"additional_special_tokens": list(_SPECIAL[1:])})
    fast.chat_template = TEMPLATE
    return fast


class _Text:
    """Sentences of made-up words, frequent ones more often, as in a language."""

    def __init__(self, rng: np.random.Generator) -> None:
        syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
        counts = rng.integers(1, 4, size=6000)
        self._words = np.array(["".join(rng.choice(syllables, count)) for count in counts])
        share = 1 / np.arange(1, 6001)
        self._drawn = rng.choice(6000, 200_000, p=share / share.sum())
        self._rng = rng

    def sentence(self, words: int) -> str:
        first = self._rng.integers(len(self._drawn) - words)
        return " ".join(self._words[self._drawn[first : first + words]])


def rows(count: int, seed: int = 0, prompt: float = 1.0) -> pl.DataFrame:
    """Rows whose prompts and responses are as long as GSM8K's: 93 and 129 tokens on average.

    Args:
        count: number of rows.
        seed: of what differs between them.
        prompt: share of the prompts' length that is kept.
    """
    rng = np.random.default_rng(seed)
    text = _Text(np.random.default_rng(1))
    lengths = np.exp(rng.normal((4.05, 4.6), (0.38, 0.45), size=(count, 2)))
    lengths = (lengths * (prompt, 1)).astype(int) + 5
    return read_rows(
        [
            {"prompt": f"{row} {text.sentence(a)}", "response": text.sentence(b)}
            for row, (a, b) in enumerate(lengths.tolist())
        ]
    )
