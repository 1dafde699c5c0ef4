"""Kinds of skip connections, and modules that have none."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from momentumnet.streams import find_streams
from momentumnet.streams.finding.skip import residual_kind
from tests.streams import nets
from tests.streams.nets import WIDTH, Block, Calls, chain, reasons, summary, tokens


def rotated(block, x, branch):
    return torch.cat(((x + branch)[..., 2:], (x + branch)[..., :2]), dim=-1)


def in_place_on_a_view(block, x, branch):
    branch = branch.clone()
    branch[..., :4] += x[..., :4]
    return branch


KINDS = {
    "additive": (
        lambda block, x, branch: branch.add_(x),
        lambda block, x, branch: torch.addmm(x.flatten(0, 1), branch.flatten(0, 1), block.gate.weight).view_as(x),
        lambda block, x, branch: (x.transpose(0, 1) + branch.transpose(0, 1)).transpose(0, 1),
        lambda block, x, branch: x - block.norm(block.gate(x)),
        lambda block, x, branch: torch.addcmul(x, block.scale, branch),
    ),
    "additive-scaled": (lambda block, x, branch: block.scale * x + branch,),
    "additive-rearranged": (rotated, in_place_on_a_view),
    "postact": (
        lambda block, x, branch: torch.relu(x + branch),
        lambda block, x, branch: block.norm(x + branch),
        lambda block, x, branch: torch.relu(x) + branch,
    ),
    "gated": (
        lambda block, x, branch: (1 - block.gate(x).sigmoid()) * x + block.gate(x).sigmoid() * branch,
        lambda block, x, branch: torch.lerp(x, branch, block.gate(x).sigmoid()),
        lambda block, x, branch: (x + branch) * block.gate(x + branch).sigmoid(),
    ),
}


@pytest.mark.parametrize(("kind", "combine"), [(kind, combine) for kind in KINDS for combine in KINDS[kind]])
def test_kinds_of_skip(kind, combine):
    assert summary(chain(3, combine), tokens()) == [("", 3, kind)]


def test_concatenated_halves_are_a_stream_of_their_own():
    model = nn.Sequential(nets.ConcatHalves(), nets.ConcatHalves(), Block(), Block())
    assert summary(model, tokens()) == [("", 2, "concat"), ("", 2, "additive")]


@pytest.mark.parametrize(
    "build",
    [
        nets.Normalise,
        nets.TanhGelu,
        nets.Squeeze,
        nets.ConcatProject,
        nn.Identity,
        lambda: nn.Linear(WIDTH, WIDTH),
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU()),
        lambda: nn.Sequential(Block(), nn.Linear(WIDTH, WIDTH)),
        lambda: nn.Sequential(Block(), nn.Linear(WIDTH, WIDTH, bias=False)),
        lambda: nn.Sequential(nets.ConcatHalves(), nn.ReLU()),
        lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8).self_attn.out_proj,
    ],
)
def test_decoys(build):
    model = nn.Sequential(*(build() for _ in range(4)))
    assert find_streams(model, tokens()) == []


def test_convolutions_that_keep_the_shape_are_no_blocks():
    def layer():
        return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))

    text = reasons(nn.Sequential(layer(), layer()), torch.randn(1, 4, 6, 6))
    assert "('0', '1'): no skip connection inside" in text


def test_a_skip_from_a_side_input_is_no_skip():
    def forward(self, x, memory):
        x = self.a(x, x.abs() if memory is None else memory)
        return self.b(x, x.abs() if memory is None else memory)

    model = Calls(forward, a=nets.FromMemory(), b=nets.FromMemory())
    assert "no skip connection inside" in reasons(model, (tokens(), tokens()))
    assert "no skip connection inside" in reasons(model, (tokens(), None))


def test_outputs_of_one_operation_are_told_apart():
    linear = nn.Linear(WIDTH, WIDTH)
    first, second = (2 * torch.randn(2, 3, WIDTH, requires_grad=True)).unbind(0)
    taken = get_gradient_edge(first)
    assert residual_kind(get_gradient_edge(second + linear(first)), taken) is None
    assert residual_kind(get_gradient_edge(first + linear(first)), taken) == "additive"


def test_the_walk_is_linear_in_the_size_of_the_graph():
    assert summary(nn.Sequential(nets.DeepSum(), nets.DeepSum()), tokens()) == [("", 2, "additive")]


def test_a_compiled_block_is_looked_into():
    model = nn.Sequential(*(torch.compile(Block(), backend="eager") for _ in range(3)))
    assert summary(model, tokens()) == [("", 3, "additive")]
