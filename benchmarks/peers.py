"""What people would otherwise pick, written anew from the papers, each with honest batching.

Every method takes padded batches of training and of validation rows and returns a value of each
training row for each validation row (or for their mean); larger helps more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from forvalue_dagster.data.batching import Batch
from forvalue_dagster.models.loading import LoadedModel
from forvalue_dagster.valuation.positions import ResponsePositions, to_device
from forvalue_dagster.valuation.unembedding import capture_last_hidden

LAYERS = ("q_proj", "v_proj")


def rows_of(batches: Sequence[Batch]) -> Tensor:
    return torch.tensor([row for batch in batches for row in batch.rows])


def in_order(values: Tensor, batches: Sequence[Batch]) -> Tensor:
    """Undo the batches' order along the first dimension."""
    return values[rows_of(batches).argsort()]


# For-Value as published (arXiv 2508.10180, Algorithm 1): the vocabulary is cut to the tokens that
# occur in the batch and in the validation rows, and a V̂×d matrix is held for every sample. The
# mask marks predicting positions, as ours does, so that the strategy is compared and nothing else.


@torch.inference_mode()
def published_values(
    loaded: LoadedModel, training: Sequence[Batch], validation: Sequence[Batch]
) -> Tensor:
    """Return the value of each training row for the mean of the validation rows [N]."""
    parts, normalisers = [], []
    for batch in validation:
        positions, logits = _full_logits(loaded, batch)
        parts.append(positions)
        normalisers.append(logits.logsumexp(1))
    trusted, normaliser = ResponsePositions.concatenate(parts), torch.cat(normalisers)
    weight = loaded.unembedding.weight
    known = torch.cat([_tokens(batch) for batch in validation])
    values = []
    for batch in training:
        positions, logits = _full_logits(loaded, batch)
        vocabulary = torch.cat([_tokens(batch), known]).unique()
        error = _restricted_errors(logits, logits.logsumexp(1), positions.labels, vocabulary)
        against = _restricted_errors(
            trusted.hidden @ weight[vocabulary].T, normaliser, trusted.labels, vocabulary, cut=True
        )
        direction = against.T @ trusted.hidden / len(trusted.lengths)
        samples = torch.stack(
            [error[row].T @ positions.hidden[row] for row in positions.row_slices()]
        )
        values.append((samples * direction).sum(dim=(1, 2)))
    return in_order(torch.cat(values), training)


def _tokens(batch: Batch) -> Tensor:
    return torch.from_numpy(batch.input_ids[batch.attention_mask > 0])


def _full_logits(loaded: LoadedModel, batch: Batch) -> tuple[ResponsePositions, Tensor]:
    captured: list[Tensor] = []
    head = loaded.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.mask)
    attention = torch.from_numpy(batch.attention_mask)
    logits = loaded.model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    handle.remove()
    return ResponsePositions.from_batch(captured[0], batch.input_ids, batch.mask), logits[mask]


def _restricted_errors(
    logits: Tensor, normaliser: Tensor, labels: Tensor, vocabulary: Tensor, cut: bool = False
) -> Tensor:
    logits = logits if cut else logits[:, vocabulary]
    error = -(logits - normaliser[:, None]).exp()
    return error + (labels[:, None] == vocabulary).to(error.dtype)


# Influence from LoRA gradients. At its start a LoRA has B = 0, so only B has a gradient:
# Σ_t δ_t (A x_t)ᵀ with x the layer's input and δ the gradient at its output. One batched backward
# pass gives the gradient of every sample; no weight's gradient is computed.


def lora_gradients(
    loaded: LoadedModel,
    batches: Sequence[Batch],
    rank: int = 8,
    seed: int = 0,
    adapted: tuple[str, ...] = LAYERS,
) -> list[Tensor]:
    """Return, for each adapted layer, the rows' gradients of the summed log-likelihood [N, K]."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        module
        for name, module in loaded.model.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(adapted)
    ]
    down = [
        torch.randn(rank, layer.in_features, generator=generator).to(layer.weight)
        / layer.in_features**0.5
        for layer in layers
    ]
    parts = [_batch_gradients(loaded, batch, layers, down) for batch in batches]
    return [in_order(torch.cat(layer), batches) for layer in zip(*parts, strict=True)]


def _batch_gradients(
    loaded: LoadedModel, batch: Batch, layers: Sequence[nn.Linear], down: Sequence[Tensor]
) -> list[Tensor]:
    found: dict[int, Tensor] = {}

    def watch(number: int, project: Tensor):
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            reduced = args[0].detach() @ project.T

            def keep(gradient: Tensor) -> None:
                found[number] = torch.einsum("bto,btr->bor", gradient, reduced).flatten(1)

            output.register_hook(keep)

        return hook

    pairs = enumerate(zip(layers, down, strict=True))
    handles = [layer.register_forward_hook(watch(n, project)) for n, (layer, project) in pairs]
    device = loaded.device
    ids, mask = to_device(batch.input_ids, device), to_device(batch.mask, device)
    inputs = {name: to_device(values, device) for name, values in batch.inputs.items()}
    # No parameter has a gradient; one input must, for any to flow.
    if "pixel_values" in inputs:
        inputs |= {"input_ids": ids, "pixel_values": inputs["pixel_values"].requires_grad_()}
    else:
        embedded = loaded.model.get_input_embeddings()(ids).detach()
        inputs |= {"inputs_embeds": embedded.requires_grad_()}
    attention = to_device(batch.attention_mask, device)
    with capture_last_hidden(loaded.model) as captured:
        loaded.model(attention_mask=attention, use_cache=False, **inputs)
    for handle in handles:
        handle.remove()
    # The head at scored positions only: the best that this method can do.
    head = loaded.unembedding
    logits = nn.functional.linear(captured[0][mask], head.weight, head.bias)
    logits = head.transform.apply(logits)
    loss = nn.functional.cross_entropy(logits.float(), ids.roll(-1, 1)[mask], reduction="sum")
    (-loss).backward()
    return [found[number] for number in range(len(layers))]


def hessian_free(training: Sequence[Tensor], validation: Sequence[Tensor]) -> Tensor:
    """Inner products of gradients [N, M] (TracIn with one checkpoint)."""
    return sum(a @ b.T for a, b in zip(training, validation, strict=True))


def datainf(training: Sequence[Tensor], validation: Sequence[Tensor]) -> Tensor:
    """DataInf (arXiv 2310.00902): swaps the order of mean and inverse, layer by layer [N, M]."""
    total = 0
    for own, other in zip(training, validation, strict=True):
        damping = 0.1 * own.square().mean()
        gram, cross = own @ own.T, own @ other.T
        share = cross / (damping + gram.diagonal())[:, None]
        total = total + (cross - gram @ share / len(own)) / damping
    return total


@torch.inference_mode()
def mean_hidden_states(loaded: LoadedModel, batches: Sequence[Batch]) -> Tensor:
    means = []
    for batch in batches:
        with capture_last_hidden(loaded.model) as captured:
            loaded.model(
                input_ids=torch.from_numpy(batch.input_ids),
                attention_mask=torch.from_numpy(batch.attention_mask),
                use_cache=False,
            )
        mask = torch.from_numpy(batch.mask)[..., None].to(captured[0].dtype)
        means.append((captured[0] * mask).sum(1) / mask.sum(1))
    return in_order(torch.cat(means), batches)


def embedding_similarity(training: Tensor, validation: Tensor) -> Tensor:
    """Cosines of mean last hidden states [N, M]."""
    normalised = (nn.functional.normalize(side, dim=1) for side in (training, validation))
    left, right = normalised
    return left @ right.T
