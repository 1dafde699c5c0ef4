"""Blocks that change two streams, as double-stream blocks of diffusion transformers do with image and text.

The first that a block returns is carried with its velocity; the second is a side tensor, kept at each block's start.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH

GAMMA = 1 / 8
IMAGE, TEXT = 24, 9
DEPTH = 4


def branch() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))


class Double(nn.Module):
    """Attention of image and text over both, then an MLP on each."""

    def __init__(self, first: str) -> None:
        super().__init__()
        self.first = first
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.mlp = nn.ModuleList(branch() for _ in range(2))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        joint = [qkv(norm(z)) for qkv, norm, z in zip(self.qkv, self.norms, (image, text), strict=True)]
        q, k, v = torch.cat(joint, 1).chunk(3, -1)
        attended = nn.functional.scaled_dot_product_attention(q, k, v).split([image.shape[1], text.shape[1]], 1)
        image, text = image + self.out[0](attended[0]), text + self.out[1](attended[1])
        image, text = image + self.mlp[0](image), text + self.mlp[1](text)
        return (image, text) if self.first == "image" else (text, image)


class Net(nn.Module):
    def __init__(self, first: str = "image", depth: int = DEPTH) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = first
        self.stems = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.blocks = nn.ModuleList(Double(first) for _ in range(depth))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        image, text = self.stems[0](image), self.stems[1](text)
        for block in self.blocks:
            found = block(image, text)
            image, text = found if self.first == "image" else reversed(found)
        return self.head(torch.cat([image, text], 1))


def both() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, IMAGE, WIDTH, generator=generator), torch.randn(2, TEXT, WIDTH, generator=generator)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    inputs = {"image": both()[0].requires_grad_(), "text": both()[1].requires_grad_()}
    net(**inputs).square().mean().backward()
    return {name: tensor.grad for name, tensor in [*net.named_parameters(), *inputs.items()]}


def held(net: nn.Module) -> int:
    net(*both())
    return mn.measure_memory(lambda: net(*both())).saved_bytes


@pytest.mark.parametrize(("first", "argument"), [("image", 0), ("text", 1)])
def test_the_first_returned_is_the_stream(first: str, argument: int) -> None:
    (stream,) = mn.find_streams(Net(first), both())
    assert (stream.path, len(stream), stream.kind) == ("blocks", DEPTH, "additive")
    assert set(stream.arguments) == {argument}
    assert stream.shape == both()[argument].shape


@pytest.mark.parametrize("first", ["image", "text"])
def test_values_by_hand(first: str) -> None:
    """The carried stream moves by its velocity, the other one by its branch."""
    net = Net(first).double()
    with torch.no_grad():
        image, text = (stem(z.double()) for stem, z in zip(net.stems, both(), strict=True))
        velocity = torch.zeros_like(image if first == "image" else text)
        for block in net.blocks:
            found = block(image, text)
            stream = image if first == "image" else text
            velocity = GAMMA * velocity + (1 - GAMMA) * (found[0] - stream)
            stream = stream + velocity
            image, text = (stream, found[1]) if first == "image" else (found[1], stream)
        flushed = stream + GAMMA / (1 - GAMMA) * velocity
        image, text = (flushed, text) if first == "image" else (image, flushed)
        expected = net.head(torch.cat([image, text], 1))
    got = mn.convert(Net(first), both(), gamma=GAMMA)(*both())
    torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("others", ["keep", "checkpoint"])
@pytest.mark.parametrize("first", ["image", "text"])
def test_gradients_are_those_of_stored(first: str, others: str) -> None:
    expected = gradients(mn.convert(Net(first), both(), gamma=GAMMA, backward="stored"))
    got = gradients(mn.convert(Net(first), both(), gamma=GAMMA, others=others))
    torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0)
    assert all(grad.any() for grad in got.values())


@pytest.mark.parametrize("first", ["image", "text"])
def test_gradients_of_a_plan_are_those_of_stored(first: str) -> None:
    expected = gradients(mn.convert(Net(first), both(), gamma=GAMMA, backward="stored"))
    net = mn.convert(Net(first), both(), gamma=GAMMA, budget="least")
    torch.testing.assert_close(gradients(net), expected, rtol=0.0, atol=0.0)
    assert held(net) < held(Net(first)) / 2


@pytest.mark.parametrize(("first", "rows"), [("image", TEXT), ("text", IMAGE)])
def test_a_block_holds_its_part_of_the_other_stream(first: str, rows: int) -> None:
    """More depth costs what the other stream takes, and of the carried one the bits that its state rests in."""
    shallow, deep = (held(mn.convert(Net(first, depth), both(), gamma=GAMMA)) for depth in (DEPTH, 2 * DEPTH))
    other, carried = 2 * rows * WIDTH * 4, 2 * (IMAGE + TEXT - rows) * WIDTH * 4
    assert DEPTH * other <= deep - shallow <= DEPTH * (other + carried / 8)
