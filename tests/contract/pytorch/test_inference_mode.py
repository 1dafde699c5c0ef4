"""Inference mode computes and refuses what no_grad does, although its tensors have no in-place counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.read_counts import reads
from tests.models import WIDTH, Case, Chain, ResidualMLP

MODES = [torch.no_grad, torch.inference_mode]


class Fiddling(Chain):
    """Does something to the stream behind one of its blocks."""

    place: int | None = None

    @staticmethod
    def fiddle(x: Tensor) -> Any:
        x.mul_(0.5)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = self.stem(x)
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place == self.place:
                self.fiddle(x)
        return self.head(x)


class Overwriting(ResidualMLP):
    active = False

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5) if self.active else x)


def network(kind: type[nn.Module] = ResidualMLP) -> nn.Module:
    torch.manual_seed(0)
    return mn.convert(Fiddling([kind() for _ in range(4)]), torch.randn(3, WIDTH))


def double_the_first_row(x: Tensor) -> None:
    x[0] *= 2


def through_a_view(x: Tensor) -> None:
    x.view(-1)[3:5].zero_()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("fiddle", [Fiddling.fiddle, double_the_first_row, through_a_view, Tensor.relu_])
def test_change_in_place_between_blocks_is_refused(
    fiddle: Callable[[Tensor], Any], place: int, dtype: torch.dtype, mode: Any
) -> None:
    net = network().to(dtype)
    x = torch.randn(3, WIDTH, dtype=dtype)
    with mode():
        net(x)
        net.place, net.fiddle = place, fiddle
        with pytest.raises(mn.ConversionError, match=f"'blocks.{place}' returned was changed in place"):
            net(x)
        net.place = 3  # behind the stream: the parent's own affair
        net(x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_block_that_overwrites_its_input_is_refused(place: int, dtype: torch.dtype, mode: Any) -> None:
    net = network(Overwriting).to(dtype)
    net.blocks[place].active = True
    with mode(), pytest.raises(mn.ReconstructionError, match=f"'blocks.{place}' overwrites its own input"):
        net(torch.randn(3, WIDTH, dtype=dtype))


@pytest.mark.parametrize("mode", MODES)
def test_block_that_overwrites_the_input_of_the_whole_network(mode: Any) -> None:
    torch.manual_seed(0)
    net = mn.convert(nn.Sequential(*[Overwriting() for _ in range(3)]), torch.randn(3, WIDTH))
    net[0].active = True
    with mode(), pytest.raises(mn.ReconstructionError, match="'0' overwrites its own input"):
        net(torch.randn(3, WIDTH))


def test_outputs_are_those_of_no_grad_and_are_inference_tensors(case: Case) -> None:
    net = mn.convert(case.model(), case.example()).eval()
    with torch.no_grad():
        expected = net(*case.example())
    with torch.inference_mode(), reads() as counts:
        found = net(*case.example())
        assert torch.equal(found, expected)
        assert counts.total() - counts["aten::equal"] == 0
    assert found.is_inference() == case.model().eval()(*case.example()).is_inference() or found.is_inference()
    assert not found.requires_grad


def test_the_input_of_the_stream_stays_as_it_was() -> None:
    net = network()
    with torch.inference_mode():
        x = torch.randn(3, WIDTH)
        before = x.clone()
        net(x)
        assert torch.equal(x, before)


def test_gradients_enabled_inside_make_no_graph() -> None:
    """PyTorch makes none there, either."""
    net = network()
    x = torch.randn(3, WIDTH)
    with torch.no_grad():
        expected = net(x)
    checkpointed = mn.convert(mn.revert(net), x, others="checkpoint")
    with torch.inference_mode(), torch.enable_grad():
        assert torch.equal(net(x), expected)
        assert torch.equal(checkpointed(x), expected)
        net.place = 0
        with pytest.raises(mn.ConversionError, match="changed in place"):
            net(x)


class Midway(Fiddling):
    """Enters inference mode behind its first block."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = self.blocks[0](self.stem(x))
        with torch.inference_mode():
            for block in self.blocks[1:]:
                x = block(x)
                x *= 0.5
        return x


def test_inference_mode_that_begins_within_a_stream_with_gradients_is_refused() -> None:
    net = network()
    net.__class__ = Midway
    with pytest.raises(mn.ConversionError, match="inference mode begins between two blocks"):
        net(torch.randn(3, WIDTH))
    with torch.no_grad(), pytest.raises(mn.ConversionError, match="changed in place"):
        net(torch.randn(3, WIDTH))


def test_first_blocks_in_inference_mode_and_the_others_trained() -> None:
    """Frozen in inference mode instead of no_grad: the same gradients."""

    class Frozen(Fiddling):
        mode: Any = torch.no_grad

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            with self.mode():
                x = self.blocks[1](self.blocks[0](x))
            return self.head(self.blocks[3](self.blocks[2](x)))

    gradients = []
    for mode in MODES:
        net = network()
        net.__class__, net.mode = Frozen, mode
        torch.manual_seed(1)
        net(torch.randn(3, WIDTH)).square().sum().backward()
        assert net.blocks[0].inner[0].weight.grad is None
        gradients.append([net.blocks[place].inner[0].weight.grad for place in (2, 3)])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("options", [{}, {"backward": "checkpointed"}, {"others": "checkpoint"}])
def test_a_backward_in_inference_mode_has_the_gradients_of_one_outside(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net, x = Chain([ResidualMLP() for _ in range(4)]), torch.randn(3, WIDTH)
    net = mn.convert(net, x, **{"backward": "reversible", **options})
    gradients = []
    for mode in (torch.enable_grad, torch.inference_mode):
        net.zero_grad()
        loss = net(x).square().sum()
        with mode():
            loss.backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert all(map(torch.equal, *gradients))


def test_blocks_compiled_and_cached_tensors_in_inference_mode() -> None:
    """A block may write into tensors that were made in inference mode, as caches are."""

    class Caching(ResidualMLP):
        cache: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.cache = torch.zeros_like(x) if self.cache is None else self.cache
            self.cache += x
            return super().forward(x) + 0.1 * self.cache

    outputs = []
    for mode in MODES:
        net = network(Caching)
        x = torch.ones(3, WIDTH)
        for block in net.blocks:
            block.cache = None
        with mode():
            net(x)
            outputs.append(net(x).clone())
    assert torch.equal(*outputs)
    net, plain = network(), network()
    for block in net.blocks:
        block.compile(backend="eager")
    with torch.inference_mode():
        assert torch.equal(net(x), plain(x))


def test_conversion_inside_inference_mode() -> None:
    model = Fiddling([ResidualMLP() for _ in range(3)])
    with torch.inference_mode():
        x = torch.randn(3, WIDTH)
        net = mn.convert(model, x, inplace=True)
        with pytest.raises(mn.ConversionError, match=r"made in torch\.inference_mode"):
            mn.plan(Fiddling([ResidualMLP() for _ in range(3)]), x)
    net(torch.randn(3, WIDTH)).sum().backward()
