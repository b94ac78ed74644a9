"""The baselines are what their papers say, or a ratio against them would mean nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import peers
from forvalue_dagster.data.batching import Batch, batches
from forvalue_dagster.data.chat import EncodedRow
from forvalue_dagster.engine.forward import response_positions
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.valuation.pairwise import pairwise_values
from forvalue_dagster.valuation.positions import ResponsePositions
from forvalue_dagster.valuation.unembedding import capture_last_hidden
from tests.tiny import VOCABULARY, tiny_loaded


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded("llama")


def rows(count: int, seed: int, vocabulary: int = VOCABULARY) -> list[EncodedRow]:
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(generator.integers(5, 14))
        mask = np.arange(length) >= length // 3
        mask[-1] = False
        made.append(EncodedRow(generator.integers(3, vocabulary, length), mask, False))
    return made


def cut(encoded: list[EncodedRow], budget: int) -> list[Batch]:
    return list(batches(encoded, budget))


def test_lora_gradients_are_those_of_autograd(loaded) -> None:
    encoded, rank = rows(4, 0), 3
    found = peers.lora_gradients(loaded, cut(encoded, 30), rank)
    layers = [
        module
        for name, module in loaded.model.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(peers.LAYERS)
    ]
    assert len(found) == len(layers) == 4
    generator = torch.Generator().manual_seed(0)
    down = [
        torch.randn(rank, layer.in_features, generator=generator).double() / layer.in_features**0.5
        for layer in layers
    ]
    for index, row in enumerate(encoded):
        up = [torch.zeros(layer.out_features, rank).double().requires_grad_() for layer in layers]
        handles = [
            layer.register_forward_hook(lambda _, args, out, a=a, b=b: out + args[0] @ a.T @ b.T)
            for layer, a, b in zip(layers, down, up, strict=True)
        ]
        ids = torch.from_numpy(row.input_ids)[None]
        logits = loaded.model(input_ids=ids, use_cache=False).logits
        for handle in handles:
            handle.remove()
        mask = torch.from_numpy(row.mask)
        likelihood = logits[0].log_softmax(-1)[mask].gather(1, ids[0].roll(-1)[mask][:, None])
        gradients = torch.autograd.grad(likelihood.sum(), up)
        for layer, expected in zip(found, gradients, strict=True):
            # The model's norms round to float32, and the batch differs.
            scale = float(expected.abs().max())
            torch.testing.assert_close(
                layer[index], expected.flatten(), rtol=1e-4, atol=1e-4 * scale
            )


def test_lora_gradients_ignore_the_batches(loaded) -> None:
    encoded = rows(6, 3)
    for one, many in zip(
        *(peers.lora_gradients(loaded, cut(encoded, budget)) for budget in (1, 1000)), strict=True
    ):
        scale = float(one.abs().max())
        torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4 * scale)


def test_rows_come_back_in_their_order() -> None:
    # A permutation that is not its own inverse, or indexing by it would pass as well.
    parts = [Batch(rows, *(np.zeros((len(rows), 1)),) * 3) for rows in ((2, 0), (3, 1))]
    assert peers.in_order(torch.tensor([2, 0, 3, 1]), parts).tolist() == [0, 1, 2, 3]


def test_hessian_free_is_the_sum_of_inner_products() -> None:
    generator = torch.Generator().manual_seed(1)
    train, validation = (
        [torch.randn(count, width, generator=generator).double() for width in (5, 9)]
        for count in (4, 3)
    )
    whole = [torch.cat(side, dim=1) for side in (train, validation)]
    expected = [[float(a @ b) for b in whole[1]] for a in whole[0]]
    torch.testing.assert_close(
        peers.hessian_free(train, validation), torch.tensor(expected, dtype=torch.float64)
    )


def test_datainf_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    train = [torch.randn(6, width, generator=generator).double() for width in (5, 9)]
    validation = [torch.randn(3, width, generator=generator).double() for width in (5, 9)]
    found = peers.datainf(train, validation)
    for i in range(6):
        for v in range(3):
            expected = 0.0
            for own, other in zip(train, validation, strict=True):
                damping = 0.1 * own.square().sum() / own.numel()
                product = torch.zeros_like(other[v])
                for g in own:
                    product += other[v] - (g @ other[v]) / (damping + g @ g) * g
                expected += float(own[i] @ product / (len(own) * damping))
            assert found[i, v].item() == pytest.approx(expected, rel=1e-9)


def exact_mean(loaded: LoadedModel, training: list[Batch], validation: list[Batch]) -> torch.Tensor:
    sides = [
        ResponsePositions.concatenate([response_positions(loaded, batch) for batch in side])
        for side in (training, validation)
    ]
    pairs = pairwise_values(loaded.unembedding, *sides)
    return peers.in_order(pairs.mean(1), training)


def test_the_published_way_is_exact_on_the_whole_vocabulary_only(loaded) -> None:
    validation = cut(rows(3, 5), 1000)
    few = rows(6, 1, vocabulary=40)
    alone = peers.published_values(loaded, cut(few, 15), validation)
    together = peers.published_values(loaded, cut(few, 1000), validation)
    # Its flaw: the neighbours in a batch change a row's value.
    assert (alone - together).abs().max() > 1e-3 * together.abs().max()
    # Rows that hold every token between them cut nothing away: each is a label somewhere.
    everything = []
    for first in range(0, VOCABULARY, 50):
        ids = np.r_[0, first : min(first + 50, VOCABULARY)]
        everything.append(EncodedRow(ids, np.arange(len(ids)) < len(ids) - 1, False))
    whole = cut(everything, 10**6)
    torch.testing.assert_close(
        peers.published_values(loaded, whole, validation),
        exact_mean(loaded, whole, validation),
        rtol=1e-5,
        atol=1e-5,
    )


def gradient(loaded: LoadedModel, row: EncodedRow) -> torch.Tensor:
    """G [V, d] of one row, straight from its definition."""
    with torch.no_grad(), capture_last_hidden(loaded.model) as captured:
        loaded.model(input_ids=torch.from_numpy(row.input_ids)[None], use_cache=False)
    mask = torch.from_numpy(row.mask)
    hidden = captured[0][0][mask]
    labels = torch.from_numpy(row.input_ids).roll(-1)[mask]
    error = torch.eye(VOCABULARY).double()[labels]
    return (error - (hidden @ loaded.unembedding.weight.T).softmax(1)).T @ hidden


def test_the_published_way_cuts_the_vocabulary_after_the_softmax(loaded) -> None:
    train, trusted = rows(5, 6, vocabulary=40), rows(3, 7, vocabulary=60)
    training = cut(train, 20)
    assert len(training) > 1
    found = peers.published_values(loaded, training, cut(trusted, 1000))

    mean = torch.stack([gradient(loaded, row) for row in trusted]).mean(0)
    for batch in training:
        present = [*(train[index] for index in batch.rows), *trusted]
        tokens = np.unique(np.concatenate([row.input_ids for row in present]))
        for index in batch.rows:
            expected = (gradient(loaded, train[index])[tokens] * mean[tokens]).sum()
            torch.testing.assert_close(found[index], expected, rtol=1e-4, atol=1e-5)


def test_embedding_similarity_ignores_the_batches(loaded) -> None:
    encoded = rows(7, 2)
    one, many = (peers.mean_hidden_states(loaded, cut(encoded, b)) for b in (20, 1000))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4)
    for index, row in enumerate(encoded):
        (alone,) = peers.mean_hidden_states(loaded, cut([row], 1000))
        torch.testing.assert_close(one[index], alone, rtol=1e-4, atol=1e-4)
    cosines = peers.embedding_similarity(one, many)
    torch.testing.assert_close(cosines.diagonal(), torch.ones(7).double(), rtol=1e-4, atol=1e-4)
