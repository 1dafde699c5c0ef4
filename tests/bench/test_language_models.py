from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from momentumnet.bench.measuring import methods as ways
from momentumnet.bench.networks.language_models import CausalDecoder, LanguageModel, LlamaDecoder, rotary_table, rotated
from momentumnet.memory import measure_memory
from momentumnet.streams.finding.discover import find_streams

DECODERS = (CausalDecoder, LlamaDecoder)
every_decoder = pytest.mark.parametrize("decoder", DECODERS)


def plain_losses(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """The cross entropy of every prediction, from the logits of all of them."""
    logits = model.head(model.hidden(tokens))
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")


@every_decoder
def test_chunked_losses_and_gradients_are_those_of_all_logits(decoder: type[CausalDecoder | LlamaDecoder]) -> None:
    torch.manual_seed(0)
    model = decoder(depth=2, width=64, length=8, vocabulary=50, chunk=5).double()
    tokens = torch.randint(50, (3, 8))
    expected = torch.stack([chunk.mean() for chunk in plain_losses(model, tokens).split(5)])
    losses = model(tokens)
    assert losses.shape == (5,)  # 21 predictions
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(values.square().mean(), parameters) for values in (losses, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@every_decoder
def test_logits_of_all_tokens_are_never_there(decoder: type[CausalDecoder | LlamaDecoder]) -> None:
    length, vocabulary = 257, 8000
    model = decoder(depth=2, width=64, length=length, vocabulary=vocabulary, chunk=8)
    tokens = torch.randint(vocabulary, (1, length))
    model(tokens).sum().backward()  # gradients exist from here on
    chunked = measure_memory(lambda: model(tokens).sum().backward())
    plain = measure_memory(lambda: plain_losses(model, tokens).sum().backward())
    logits = 4 * (length - 1) * vocabulary
    assert plain.saved_bytes > logits > chunked.saved_bytes
    assert plain.peak_bytes - chunked.peak_bytes > logits


@every_decoder
def test_blocks_are_found(decoder: type[CausalDecoder | LlamaDecoder]) -> None:
    model = decoder(depth=3, width=64, length=8, vocabulary=50)
    (stream,) = find_streams(model, torch.randint(50, (2, 8)))
    assert (stream.path, stream.shape) == ("blocks", (2, 8, 64))
    assert stream.blocks == ("blocks.0", "blocks.1", "blocks.2")


@every_decoder
def test_no_layer_looks_ahead(decoder: type[CausalDecoder | LlamaDecoder]) -> None:
    torch.manual_seed(0)
    model = decoder(depth=4, width=64, length=16, vocabulary=50).eval()
    tokens = torch.randint(50, (1, 16))
    changed = tokens.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 50
    variant = ways.checkpointed(model, ("blocks",), every=None)
    before, after = variant.hidden(tokens), variant.hidden(changed)
    assert torch.equal(before, model.hidden(tokens))
    torch.testing.assert_close(before[0, :10], after[0, :10], rtol=0, atol=1e-5)
    assert not torch.allclose(before[0, 10:], after[0, 10:], atol=1e-2)


def test_rotary_products_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 16, dtype=torch.float64)
    turn = partial(rotated, table=rotary_table(20, 16).double())
    products = turn(query.expand(20, 16)) @ turn(key.expand(20, 16)).T
    for distance in (-7, 0, 3):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    assert torch.isclose(products[0, 0], query @ key)
    assert not torch.isclose(products[0, 3], query @ key, atol=1e-2)
