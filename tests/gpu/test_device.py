"""The pass on a real GPU: the same numbers as on the CPU, nothing that waits, memory that runs out.

pytest -m gpu
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from forvalue_dagster.data.batching import batches
from forvalue_dagster.data.read import read_rows
from forvalue_dagster.engine.encoding import encode_rows
from forvalue_dagster.engine.features import feature_head, feature_parts
from forvalue_dagster.engine.forward import pass_batch
from forvalue_dagster.engine.scoring import build_profile, exact_head, score_rows
from forvalue_dagster.models.loading import LoadedModel, prepare_model
from forvalue_dagster.options.valuation import ValuationOptions
from forvalue_dagster.valuation import prediction_error
from forvalue_dagster.valuation.positions import ResponsePositions
from forvalue_dagster.valuation.preconditioner import Preconditioner
from forvalue_dagster.valuation.prediction_error import PredictionErrors
from forvalue_dagster.valuation.products import SplitFactor
from forvalue_dagster.valuation.profile_builder import ProfileBuilder
from forvalue_dagster.valuation.sweep_shape import blocked, wide
from forvalue_dagster.valuation.unembedding import SoftCap, Unembedding
from forvalue_dagster.valuation.value import exact_values
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model
from tests.valuation.test_exact_value import (
    GROUPS,
    autograd_gradients,
    padded_rows,
    response_positions,
    unembedding_of,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU for CUDA here"),
]
NO_PROBE = ValuationOptions(noise=None)
ROWS = [
    {"prompt": "p" * (20 + 7 * i % 90), "response": "r" * (10 + 11 * i % 60)} for i in range(60)
]


def on_gpu(family: str = "llama", dtype: torch.dtype = torch.float32) -> LoadedModel:
    return prepare_model(tiny_model(family, dtype).cuda(), byte_tokenizer())


@pytest.mark.parametrize("shape", ["blocked", "wide", "wide, in parts"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_autograd(family: str, dtype: torch.dtype, shape: str) -> None:
    rows = padded_rows()
    made = {"blocked": blocked(), "wide": wide(2**30), "wide, in parts": wide(2**13)}
    # The hidden states of the CPU, so that only what comes after them is compared.
    model = tiny_model(family, dtype)
    unembedding, positions = unembedding_of(model, rows), response_positions(model, rows)
    bias = None if unembedding.bias is None else unembedding.bias.cuda()
    here = replace(unembedding, weight=unembedding.weight.cuda(), bias=bias, shape=made[shape])
    there = ResponsePositions(positions.hidden.cuda(), positions.labels.cuda(), positions.lengths)
    builder = ProfileBuilder(here, ["a", "b"])
    builder.add(there, GROUPS, range(len(GROUPS)))
    values = exact_values(here, there, builder.build().direction(Preconditioner("none"))).rows
    G = autograd_gradients(tiny_model(family, torch.float64), rows)
    mean = torch.stack(G).mean(0)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for index, gradient in enumerate(G):
        norm = gradient.norm()
        assert abs(values.norm[index].cpu() - norm) <= tolerance * norm
        error = values.value[index].cpu() - (gradient * mean).sum()
        assert abs(error) <= tolerance * norm * mean.norm()


def large(dtype: torch.dtype, transform: object = None) -> tuple[Unembedding, ResponsePositions]:
    """A head of real width, on the GPU, with predictions far from uniform."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    weight = (0.05 * normal(151_936, 512)).to(dtype)
    labels = torch.randint(0, len(weight), (300,), generator=generator, device="cuda")
    hidden = (3 * normal(300, 512) + 8 * weight[labels].float()).to(dtype)
    unembedding = Unembedding(weight)
    if transform is not None:
        unembedding = replace(unembedding, transform=transform)
    return unembedding, ResponsePositions(hidden, labels, (100, 1, 150, 49))


@pytest.mark.parametrize("transform", [None, SoftCap(20.0)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_half_precision_is_as_exact_as_float32(dtype: torch.dtype, transform: object) -> None:
    unembedding, positions = large(dtype, transform)
    # The same numbers held in float64: the truth.
    truth = replace(unembedding, weight=unembedding.weight.double())
    states = replace(positions, hidden=positions.hidden.double())
    half = PredictionErrors(unembedding, positions, top=16)
    full = PredictionErrors(truth, states, top=16)
    for name in ("nll", "entropy"):
        error = getattr(half.tokens, name) - getattr(full.tokens, name)
        assert error.abs().max() < 2e-4, name
    assert (half.tokens.rank - full.tokens.rank).abs().max() <= 3
    assert abs(half.top()[1].abs().sum() - full.top()[1].abs().sum()) < 1e-2

    def values(unembedding: Unembedding, positions: ResponsePositions):
        builder = ProfileBuilder(unembedding, ["a", "b"])
        builder.add(positions, ["a", "b", "a", "b"], range(4))
        direction = builder.build().direction(Preconditioner("activation"))
        return exact_values(unembedding, positions, direction).rows

    found, expected = values(unembedding, positions), values(truth, states)
    torch.testing.assert_close(found.norm, expected.norm, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.alignment, expected.alignment, rtol=0, atol=1e-4)


@pytest.mark.parametrize("columns", [151_936, 32_000, 259])
def test_fused_sums_are_those_of_plain_operations(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    unembedding, positions = large(torch.float32)
    unembedding = replace(unembedding, weight=unembedding.weight[:columns].contiguous())
    positions = replace(positions, labels=positions.labels % columns)
    assert prediction_error.fused is not None
    fused = PredictionErrors(unembedding, positions, top=16)
    monkeypatch.setattr(prediction_error, "fused", None)
    plain = PredictionErrors(unembedding, positions, top=16)
    for name in ("nll", "entropy", "rank"):
        torch.testing.assert_close(getattr(fused.tokens, name), getattr(plain.tokens, name))
    for a, b in zip(fused.top(), plain.top(), strict=True):
        torch.testing.assert_close(a.sort(1).values, b.sort(1).values)


def test_split_products_are_as_exact_as_float32() -> None:
    generator = torch.Generator("cuda").manual_seed(1)
    a, b = (
        torch.randn(n, 512, generator=generator, device="cuda") * scale
        for n, scale in ((64, 30.0), (2048, 1e-5))
    )
    a[:, 3] *= 100
    raw, factor = SplitFactor.left(a).times(SplitFactor.right(b))
    truth = a.double() @ b.double().T
    bound = a.double().norm(dim=1)[:, None] * b.double().norm(dim=1)
    assert ((raw / factor - truth).abs() / bound).max() < 1e-6


def made_batches(loaded: LoadedModel):
    rows = list(encode_rows(loaded.encoder("response"), read_rows(ROWS)))
    return list(batches(rows, 2048))


def test_nothing_waits_inside_a_batch() -> None:
    """What is computed beside the model issues no operation that waits for the device."""
    loaded = on_gpu(dtype=torch.bfloat16)
    profile, _ = build_profile(loaded, read_rows(ROWS), NO_PROBE)
    direction = profile.direction(Preconditioner())
    batch = made_batches(loaded)[0]
    for head in (
        lambda passed: feature_head(loaded, NO_PROBE, passed),
        lambda passed: exact_head(loaded, direction, None, passed),
    ):
        head(pass_batch(loaded, batch))  # pinned memory and kernels are made once
        torch.cuda.synchronize()
        passed = pass_batch(loaded, batch)
        torch.cuda.set_sync_debug_mode("error")
        try:
            transfer = head(passed)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert np.isfinite(transfer.arrays()["statistics"]).all()


def test_the_gpu_scores_as_the_cpu_does() -> None:
    cpu = prepare_model(tiny_model("qwen2", torch.float32), byte_tokenizer())
    gpu = on_gpu("qwen2")
    scores = []
    for loaded in (cpu, gpu):
        profile, _ = build_profile(loaded, read_rows(ROWS[:9]), NO_PROBE)
        scores.append(score_rows(loaded, read_rows(ROWS), profile, NO_PROBE))
    for name in ("value", "alignment", "gradient_norm", "nll", "surprise_peak"):
        scale = float(scores[0][name].abs().max())
        np.testing.assert_allclose(scores[1][name], scores[0][name], atol=1e-4 * scale)


def test_batches_are_halved_until_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    """Memory really runs out: all but a little of the card is taken."""
    model = tiny_model("llama", torch.float32)
    model.config._attn_implementation = "eager"  # its weights grow with the square of the length
    loaded = prepare_model(model.cuda(), byte_tokenizer())
    rows = read_rows(
        [{"prompt": str(i) + "p" * 300, "response": "r" * (60 + i % 5)} for i in range(60)]
    )
    small = ValuationOptions(batch_tokens=2000, window_rows=30)
    expected = pl.concat(feature_parts(loaded, rows, small))
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(free - 48 * 2**20, dtype=torch.uint8, device="cuda")
    try:
        with caplog.at_level(logging.WARNING):
            whole = ValuationOptions(batch_tokens=100_000, window_rows=30)
            table = pl.concat(feature_parts(loaded, rows, whole))
    finally:
        del taken
        torch.cuda.empty_cache()
    assert table["status"].to_list() == ["scored"] * 60
    assert float((table["nll"] - expected["nll"]).abs().max()) < 1e-4
    assert "did not fit in memory" in caplog.text


def test_a_pass_that_goes_on_ends_with_the_same_bytes() -> None:
    class Kept:
        def __init__(self, finished: dict | None = None) -> None:
            self.parts = dict(finished or {})

        def __contains__(self, key: str) -> bool:
            return key in self.parts

        def load(self, key: str):
            return self.parts.get(key)

        def save(self, key: str, part: pl.DataFrame, budget: str) -> None:
            self.parts[key] = part, budget

    loaded, rows = on_gpu(dtype=torch.bfloat16), read_rows(ROWS)
    options = ValuationOptions(window_rows=16, batch_tokens=1024)
    whole = Kept()
    table = pl.concat(feature_parts(loaded, rows, options, store=whole))
    first = dict(list(whole.parts.items())[:2])
    again = pl.concat(feature_parts(loaded, rows, options, store=Kept(first)))
    assert again.equals(table)
