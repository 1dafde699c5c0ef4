"""Blocks that change two streams, as double-stream blocks of diffusion transformers do with image and text.

Both move by the rule, as one state: f is evaluated at the pair.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.double_streams import (
    DEPTH,
    GAMMA,
    IMAGE,
    TEXT,
    Net,
    Pair,
    assert_same_gradients,
    both,
    by_hand,
    gradients,
    held,
    positional,
)
from tests.models import WIDTH

EITHER = pytest.mark.parametrize("first", ["image", "text"])


@EITHER
def test_both_are_found(first: str) -> None:
    (stream,) = mn.find_streams(Net(first), both())
    one, other = (0, 1) if first == "image" else (1, 0)
    assert (stream.path, len(stream), stream.kind) == ("blocks", DEPTH, "additive")
    assert (set(stream.arguments), stream.shape) == ({one}, both()[one].shape)
    (companion,) = stream.companions
    assert companion.arguments == DEPTH * (other,)
    assert companion.outputs == DEPTH * (1,)
    assert companion.shape == both()[other].shape


@EITHER
@pytest.mark.parametrize("gamma", [1 / 8, 0.5, 0.9])
def test_values_by_hand(first: str, gamma: float) -> None:
    pair, net = both(torch.float64), Net(first).double()
    got = mn.convert(net, pair, gamma=gamma)
    expected = by_hand(net, gamma, pair).detach()
    torch.testing.assert_close(got(*pair).detach(), expected, rtol=0, atol=1e-12)
    for without in (torch.no_grad, torch.inference_mode):
        with without():
            torch.testing.assert_close(got.eval()(*pair), expected, rtol=0, atol=1e-12)


@EITHER
@pytest.mark.parametrize("depth", [2, DEPTH, 50])
def test_gradients_are_those_of_stored(first: str, depth: int) -> None:
    expected = gradients(mn.convert(Net(first, depth), both(), gamma=GAMMA, backward="stored"))
    net = mn.convert(Net(first, depth), both(), gamma=GAMMA, backward="reversible")
    assert_same_gradients(gradients(net), expected)
    assert all(grad.any() for grad in expected.values())


def test_gradients_of_stored_are_those_of_the_rule_in_floats() -> None:
    """By autograd through the formula, in float64."""
    net = Net().double()
    got = gradients(mn.convert(net, both(torch.float64), gamma=GAMMA, backward="stored"))
    image, text = (z.requires_grad_() for z in both(torch.float64))
    by_hand(net, GAMMA, (image, text)).float().square().mean().backward()
    expected = {name: p.grad for name, p in net.named_parameters()} | {"image": image.grad, "text": text.grad}
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"backward": "checkpointed"},
        {"others": "checkpoint"},
        {"gamma": 0.9, "backward": "reversible"},
        {"initial_velocity": "branch"},
        {"final_velocity": "drop"},
        {"coupling": "bdia"},
        {"coupling": "dr2net"},
    ],
    ids=str,
)
def test_gradients_with_options(options: dict[str, Any]) -> None:
    nets = []
    for backward in ("stored", options.get("backward", "auto")):
        nets.append(mn.convert(Net(), both(), **{**options, "backward": backward}))
    found = []
    for net in nets:
        torch.manual_seed(5)  # bdia draws
        found.append(gradients(net))
    assert_same_gradients(*found)


def test_initial_velocity_is_of_what_is_returned_first() -> None:
    class Start(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape == (2, TEXT, WIDTH)
            return super().forward(x)

    found = []
    for backward in ("stored", "reversible"):
        torch.manual_seed(7)
        net = mn.convert(Net("text"), both(), backward=backward, initial_velocity=Start(WIDTH, WIDTH))
        found.append(gradients(net))
        assert found[-1]["blocks.0.initial_velocity.weight"].any()
    assert_same_gradients(*found)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_other_types(kind: torch.dtype) -> None:
    stored, net = (
        mn.convert(Net(depth=8).to(kind), both(kind), gamma=GAMMA, backward=backward)
        for backward in ("stored", "reversible")
    )
    assert_same_gradients(gradients(net), gradients(stored))


def test_autocast_may_make_their_types_different() -> None:
    """A stem in float32, the other in autocast's type: both are carried in the wider one."""
    nets = [mn.convert(Net(), both(), gamma=GAMMA, backward=backward) for backward in ("stored", "reversible")]
    for net in nets:
        net.stems[1] = nn.LayerNorm(WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [gradients(net) for net in nets]
    assert_same_gradients(*found)


@EITHER
def test_more_depth_holds_the_bits_of_the_state(first: str) -> None:
    """Of neither of the two is a value held by each block."""
    shallow, deep = (
        held(mn.convert(Net(first, depth), both(), gamma=GAMMA, backward="reversible")) for depth in (16, 24)
    )
    bits = 8 * (deep - shallow) / (8 * 2 * (IMAGE + TEXT) * WIDTH)  # of an element in a block
    assert 3 <= bits < 3.5  # what the velocity loses at gamma 1/8


@EITHER
def test_a_plan_for_a_budget(first: str) -> None:
    expected = gradients(mn.convert(Net(first), both(), gamma=GAMMA, backward="stored"))
    net = mn.convert(Net(first), both(), gamma=GAMMA, budget="least")
    assert_same_gradients(gradients(net), expected)
    assert held(net) < held(Net(first)) / 2


def test_a_forward_that_is_played_again(caplog: pytest.LogCaptureFixture) -> None:
    """A value of the second tensor outgrows the scale."""
    found = []
    for backward in ("stored", "reversible"):
        net = mn.convert(Net(), both(), gamma=GAMMA, backward=backward)
        gradients(net)
        with torch.no_grad():
            net.blocks[1].out[1].weight.mul_(1e6)
        found.append(gradients(net))
    assert "played again" in caplog.text
    assert_same_gradients(*found)


def test_a_range_that_is_checked_with_backward() -> None:
    """Both are NaN where a value of the second one outgrows the scale; before and behind, numbers are as ever."""
    early, late = (mn.convert(Net(), both(), gamma=GAMMA) for _ in range(2))
    mn.set_range_check(late, "backward")
    for _ in range(2):
        assert_same_gradients(gradients(late), gradients(early))
    with torch.no_grad():
        late.blocks[1].out[1].weight.mul_(1e6)
    assert late(*both()).isnan().all()
    early.load_state_dict(late.state_dict())
    gradients(late)  # has learned
    with torch.no_grad():
        late.blocks[0].out[1].weight.mul_(1e6)
    with pytest.raises(mn.StateRangeError):
        gradients(late)
    early.load_state_dict(late.state_dict())
    got, expected = gradients(late), gradients(early)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-3 * float(expected[name].abs().max()))


def test_only_one_of_them_is_used_behind_the_stream() -> None:
    class First(Net):
        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            for block in self.blocks:
                image, text = positional(block, image, text)
            return image

    found = []
    for backward in ("stored", "reversible"):
        net = mn.convert(First(), both(), gamma=GAMMA, backward=backward)
        found.append(gradients(net))
    assert_same_gradients(*found)


def test_a_part_without_gradient() -> None:
    """Text from a frozen stem, as in fine-tuning with adapters."""
    found = []
    for backward in ("stored", "reversible"):
        net = Net()
        net.stems[1].requires_grad_(False)
        net = mn.convert(net, both(), gamma=GAMMA, backward=backward)
        net(*both()).square().mean().backward()
        found.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert_same_gradients(*found)


class Maps(nn.Module):
    """A map of 4 dimensions and a vector of 2, each changed by the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.to_map, self.to_vector = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(5, 3), nn.Linear(3, 5)

    def forward(self, vector: Tensor, image: Tensor) -> Pair:
        shift = self.to_map(vector)[:, :, None, None]
        return image + (self.conv(image) + shift).tanh(), vector + self.to_vector(image.mean((2, 3))).tanh()


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Maps() for _ in range(5))

    def forward(self, vector: Tensor, image: Tensor) -> Tensor:
        for block in self.blocks:
            image, vector = block(vector, image)
        return image.mean() + vector.square().mean()


def test_shapes_of_other_ranks_and_strides() -> None:
    vector, image = torch.randn(2, 5), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    (stream,) = mn.find_streams(Chain(), (vector, image))
    assert stream.shapes == ((2, 3, 4, 4), (2, 5))
    found = []
    for backward in ("stored", "reversible"):
        net = mn.convert(Chain(), (vector, image), gamma=GAMMA, backward=backward)
        net(vector, image).backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    assert_same_gradients(*found)
