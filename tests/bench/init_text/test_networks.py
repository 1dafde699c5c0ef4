from __future__ import annotations

import pytest
import torch
from torch import nn

from momentumnet.bench.init_text.methods import tfixup
from momentumnet.bench.init_text.networks import build

DEPTH, WIDTH, LENGTH, VOCABULARY = 3, 64, 8, 11


def decoder(network: str) -> nn.Module:
    return build(network, 0, depth=DEPTH, width=WIDTH, length=LENGTH, vocabulary=VOCABULARY).double()


def by_hand(model: nn.Module, tokens: torch.Tensor, network: str) -> torch.Tensor:
    """The formulas of the two kinds (Xiong et al., ICML 2020, table 1), and post-norm with its norms left out."""
    mask = torch.full((LENGTH, LENGTH), -torch.inf, dtype=torch.float64).triu(1)
    x = model.tokens(tokens) + model.positions
    for block in model.blocks:
        first, second = (nn.Identity(), nn.Identity()) if network == "norm-free" else (block.norm1, block.norm2)

        def attend(x: torch.Tensor, block: nn.Module = block) -> torch.Tensor:
            query, key, value = (x @ block.self_attn.in_proj_weight.T + block.self_attn.in_proj_bias).chunk(3, -1)
            weights = (query @ key.transpose(1, 2) / WIDTH**0.5 + mask).softmax(-1)
            return block.self_attn.out_proj(weights @ value)

        def feed(x: torch.Tensor, block: nn.Module = block) -> torch.Tensor:
            return block.linear2(nn.functional.gelu(block.linear1(x)))

        if network == "pre-norm":
            x = x + attend(first(x))
            x = x + feed(second(x))
        else:
            x = first(x + attend(x))
            x = second(x + feed(x))
    return model.head(model.norm(x) if network == "pre-norm" else x)


@pytest.mark.parametrize("network", ["post-norm", "pre-norm", "norm-free"])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_norms_are_where_the_name_says(network: str) -> None:
    model, tokens = decoder(network), torch.randint(VOCABULARY, (2, LENGTH))
    if network == "norm-free":
        tfixup(model, tokens)
    with torch.no_grad():  # norms that differ from each other, so that it matters which one is where
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.01 * torch.randn_like(parameter) + 0.001 * index)
    torch.testing.assert_close(model(tokens), by_hand(model, tokens, network), rtol=0, atol=1e-10)
    norms = sum(isinstance(module, nn.LayerNorm) for module in model.modules())
    assert norms == {"post-norm": 2 * DEPTH, "pre-norm": 2 * DEPTH + 1, "norm-free": 0}[network]


def test_weights_are_those_of_the_seed() -> None:
    shape = {"depth": 1, "width": 64, "length": LENGTH, "vocabulary": VOCABULARY}
    first, again, other = (build("post-norm", seed, **shape).head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_tfixup_reads_the_decoder_as_one() -> None:
    found = tfixup(decoder("norm-free"), torch.randint(VOCABULARY, (2, LENGTH)))
    assert found["notes"][0] == f"decoder of {DEPTH} layers, x {(9 * DEPTH) ** -0.25:.4g}"
    assert found["notes"][1].startswith(f"{2 * DEPTH} normalisation layers removed")
