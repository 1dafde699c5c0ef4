"""What a stream returned is not kept by the modules behind it: its state gives it back, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.outside.stream_then_module import CONVERSIONS, ROWS, Between, StreamThenModule, rows
from tests.contract.reference import assert_same, train_step
from tests.models import WIDTH


def pair(build: Callable[[], nn.Module] = StreamThenModule, **options: object) -> tuple[nn.Module, nn.Module]:
    """Converted with the module behind kept, and recomputed."""
    torch.manual_seed(7)
    model = build().train()
    kept, recomputed = (mn.convert(model, rows(), others=others, **options) for others in ("keep", "checkpoint"))
    return kept, recomputed


@pytest.mark.parametrize("options", [*CONVERSIONS, {"backward": "stored"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_are_those_of_kept_activations(options: dict[str, object], dtype: torch.dtype) -> None:
    kept, recomputed = (net.to(dtype) for net in pair(**options))
    x = rows().to(dtype)
    assert_same(train_step(recomputed, (x,)), train_step(kept, (x,)), tolerance=0.0)


def test_nobody_keeps_what_the_stream_returned() -> None:
    kept, recomputed = pair()
    outputs = [net(rows()) for net in (kept, recomputed)]
    assert kept.returned() is not None
    assert recomputed.returned() is None
    assert outputs[0].equal(outputs[1])


FINGERPRINT = 24  # of what a recompute returns and of what it saves, two integers each on its device


def held(net: nn.Module) -> int:
    x = rows()
    return mn.measure_memory(lambda: net(x)).saved_bytes


def test_the_plan_counts_on_it() -> None:
    kept, recomputed = pair()
    planned = [mn.plan(StreamThenModule(), rows(), others=others).saved_after for others in ("keep", "checkpoint")]
    freed = 4 * ROWS * (WIDTH + 2 * WIDTH)  # the first layer's input, and what tanh returns
    assert planned[0] - planned[1] == freed
    assert held(kept) - held(recomputed) == freed - FINGERPRINT


def test_the_plan_counts_no_input_that_is_kept_anyway() -> None:
    class Multiplied(StreamThenModule):
        """Keeps the stream's output for the gradient of a product."""

        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks(self.start(x))
            return self.behind(x) * (x * x).mean()

    for build, options in ((Multiplied, {}), (StreamThenModule, {"arithmetic": "float", "gamma": 0.9})):
        kept, recomputed = pair(build, **options)
        planned = [mn.plan(build(), rows(), others=o, **options).saved_after for o in ("keep", "checkpoint")]
        assert planned[0] - planned[1] == 4 * ROWS * 2 * WIDTH  # what tanh returns
        assert held(kept) - held(recomputed) == planned[0] - planned[1] - FINGERPRINT


@pytest.mark.parametrize(
    "between", [lambda x: x.add_(1), lambda x: 2 * x, lambda x: x.view(-1, WIDTH), lambda x: x.detach()]
)
def test_another_tensor_is_kept(between: Between) -> None:
    kept, recomputed = pair()
    kept.between = recomputed.between = between
    assert_same(train_step(recomputed, (rows(),)), train_step(kept, (rows(),)), tolerance=0.0)


def test_output_that_is_overwritten_later_is_computed_again_all_the_same() -> None:
    class Overwriting(StreamThenModule):
        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks(self.start(x))
            y = self.behind(x)
            with torch.no_grad():
                x.zero_()
            return y

    _, recomputed = pair(Overwriting)
    _, expected = pair()
    assert_same(train_step(recomputed, (rows(),)), train_step(expected, (rows(),)), tolerance=0.0)


@pytest.mark.parametrize("options", [{}, {"arithmetic": "float", "gamma": 0.9}])
def test_stream_that_was_rewound_before(options: dict[str, object]) -> None:
    gradients = []
    for net in pair(lambda: StreamThenModule(tapped=True), **options):
        output, returned = net(rows())
        torch.autograd.grad(returned.sum(), list(net.blocks.parameters()), retain_graph=True)
        gradients.append(torch.autograd.grad(output.sum(), list(net.behind.parameters())))
    for got, expected in zip(*gradients, strict=True):
        assert torch.equal(got, expected)


def test_streams_that_need_no_gradient_and_passes_in_floats() -> None:
    nets = pair()
    for net in nets:
        net.start.requires_grad_(False)
        net.blocks.requires_grad_(False)
    x = rows()
    gradients = [torch.autograd.grad(net(x).sum(), list(net.behind.parameters())) for net in nets]
    for got, expected in zip(*gradients, strict=True):
        assert torch.equal(got, expected)
    x[0, 0] = torch.nan
    kept, recomputed = pair()
    for got, expected in zip(recomputed.parameters(), kept.parameters(), strict=True):
        got.grad = expected.grad = None
    for net in (kept, recomputed):
        net(x).sum().backward()
    for got, expected in zip(recomputed.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=0, atol=0, equal_nan=True)


def test_parameter_that_changed_is_found_when_the_stream_has_to_be_played_again() -> None:
    _, recomputed = pair(lambda: StreamThenModule(tapped=True))
    output, returned = recomputed(rows())
    torch.autograd.grad(returned.sum(), list(recomputed.blocks.parameters()), retain_graph=True)
    with torch.no_grad():
        recomputed.blocks[0].inner[0].weight.add_(1)
    with pytest.raises(mn.ReconstructionError, match="was changed between forward and backward"):
        output.sum().backward()
