"""Reversible networks with a backward of their own, which reads what their forward has left and makes gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.reference import assert_same, train_step
from tests.models import WIDTH, ResidualMLP
from tests.planner.wide import rows


class Block(nn.Module):
    """y1 = x1 + f(x2), y2 = x2 + g(y1), with dropout that a seed on the block makes the same again."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = (nn.Sequential(nn.Linear(WIDTH // 2, WIDTH // 2), nn.Dropout(0.2)) for _ in range(2))
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        self.state = torch.get_rng_state()
        first = first + self.f(second)
        return torch.cat([first, second + self.g(first)], -1)

    def back(self, y: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The input of this output, without dropout in between, and its gradient."""
        first, second = y.chunk(2, -1)
        with torch.random.fork_rng(), torch.no_grad():
            torch.set_rng_state(self.state)
            masks = [module[1](torch.ones_like(first)) for module in (self.f, self.g)]
            second = second - self.g[0](first) * masks[1]
            first = first - self.f[0](second) * masks[0]
        with torch.enable_grad():
            x = torch.cat([first, second], -1).requires_grad_()
            one, two = x.chunk(2, -1)
            one = one + self.f[0](two) * masks[0]
            torch.autograd.backward(torch.cat([one, two + self.g[0](one) * masks[1]], -1), gradient)
        return x.detach(), x.grad


class Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: nn.ModuleList) -> Tensor:
        for block in blocks:
            x = block(x)
        ctx.output, ctx.blocks = x.detach(), blocks
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        y = ctx.output
        for block in reversed(ctx.blocks):
            y, gradient = block.back(y, gradient)
        return gradient, None


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return Reversible.apply(x, self.blocks)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), Sequence(), ResidualMLP(WIDTH, 8 * WIDTH), nn.Linear(WIDTH, 3))


def train(net: nn.Module) -> Any:
    torch.manual_seed(1)
    return train_step(net, (rows(),))


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("budget", ["least", 1 << 20])
def test_it_is_planned_and_trained(budget: int | str, has_run: bool) -> None:
    """A backward that found no seed raised; one that did left the gradients of the measured runs on the network."""
    model = network()
    if has_run:
        model(rows())
    parameters = list(model.parameters())
    gradients = [torch.full_like(parameter, 7.0) if number % 2 else None for number, parameter in enumerate(parameters)]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    state = model[1].blocks[0].state
    plan = mn.plan(model, rows(), budget=budget)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is gradient
        assert gradient is None or gradient.eq(7.0).all()
    assert model[1].blocks[0].state is state
    model.zero_grad()
    expected = train(copy.deepcopy(model))
    assert_same(train(mn.convert(model, plan=plan)), expected, tolerance=0.0)


def test_reformer() -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'momentumnet[hf]'")
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "attention_head_size": 8, "feed_forward_size": 32}
    axes = {"axial_pos_shape": (4, 8), "axial_pos_embds_dim": (8, 8), "max_position_embeddings": 32}
    config = transformers.ReformerConfig(
        **sizes, **axes, vocab_size=32, attn_layers=["local"] * 3, local_attn_chunk_length=8, is_decoder=True
    )
    torch.manual_seed(0)
    model, tokens = transformers.ReformerModelWithLMHead(config), torch.randint(32, (2, 32))
    net = mn.convert(model, {"input_ids": tokens, "labels": tokens}, budget="1GiB")
    assert all(parameter.grad is None for parameter in model.parameters())
    net(input_ids=tokens, labels=tokens).loss.backward()
    assert all(parameter.grad is not None for parameter in net.reformer.parameters())
