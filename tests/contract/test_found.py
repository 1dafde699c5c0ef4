"""Defects found by review, each of which gave a wrong gradient, a wrong output or a refusal without cause."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torchvision.models import mnasnet0_5

import momentumnet as mn
from tests.contract.reference import assert_same, train_step
from tests.models import WIDTH, ResidualMLP

BACKWARDS = ("stored", "reversible")


class Looped(nn.Module):
    """Residual blocks, called as the given function says."""

    def __init__(self, run: Any, block: type[nn.Module] = ResidualMLP, depth: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block() for _ in range(depth)])
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def converted(model: nn.Module, backward: str = "reversible", gamma: float = 0.5, **options: Any) -> nn.Module:
    return mn.convert(model, streams=["blocks"], gamma=gamma, backward=backward, **options)


def straight(parent: Looped, x: Tensor) -> Tensor:
    for block in parent.blocks:
        x = block(x)
    return x


def checkpointed(*which: int, reentrant: bool) -> Any:
    def run(parent: Looped, x: Tensor) -> Tensor:
        for index, block in enumerate(parent.blocks):
            x = checkpoint(block, x, use_reentrant=reentrant) if index in which else block(x)
        return x

    return run


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("which", [(0,), (1,), (3,), (0, 1, 2, 3)])
def test_reentrant_checkpoint_around_a_block_cuts_the_velocity_and_is_refused(
    which: tuple[int, ...], backward: str
) -> None:
    net = converted(Looped(checkpointed(*which, reentrant=True)), backward)
    with pytest.raises(mn.MomentumNetError, match=r"velocity.*checkpoint"):
        net(torch.randn(5, WIDTH, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("which", [(0,), (1,), (3,), (0, 1, 2, 3)])
def test_checkpoint_without_reentry_around_a_block_works(which: tuple[int, ...], backward: str) -> None:
    torch.manual_seed(0)
    x, plain = torch.randn(5, WIDTH), Looped(straight)
    wrapped = copy.deepcopy(plain)
    wrapped.run = checkpointed(*which, reentrant=False)
    assert_same(train_step(converted(wrapped, backward), (x,)), train_step(converted(plain), (x,)))


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_of_a_streams_end_with_what_follows_is_refused(reentrant: bool, backward: str) -> None:
    def run(parent: Looped, x: Tensor) -> Tensor:
        a, b, c, d = parent.blocks
        return checkpoint(lambda x: torch.tanh(d(c(x))), b(a(x)), use_reentrant=reentrant)

    output = converted(Looped(run), backward)(torch.randn(5, WIDTH))
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.2.*middle of its stream"):
        output.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_of_a_whole_stream_works(reentrant: bool) -> None:
    torch.manual_seed(0)
    # The reentrant kind runs forward without gradients, so in floats, and its recompute in integers: at this gamma they
    # are fine enough for the two to agree.
    net, x = converted(Looped(straight), gamma=0.75), torch.randn(5, WIDTH)
    expected = train_step(net, (x,))
    net.zero_grad()
    got = train_step(lambda_module(net, lambda x: checkpoint(net, x, use_reentrant=reentrant)), (x,))
    for name, gradient in expected.gradients.items():
        if name != "input 0":
            torch.testing.assert_close(got.gradients[f"net.{name}"], gradient, rtol=1e-5, atol=1e-7)


def lambda_module(net: nn.Module, forward: Any) -> nn.Module:
    module = nn.Module()
    module.net, module.forward = net, forward
    return module


@pytest.mark.parametrize("backward", BACKWARDS)
def test_layer_drop_of_the_last_block_and_then_of_the_first(backward: str) -> None:
    """The loss of the step before is still alive when the next forward begins, as in any training loop."""

    def run(parent: Looped, x: Tensor) -> Tensor:
        for index, block in enumerate(parent.blocks):
            if index != parent.skipped:
                x = block(x)
        return x

    net, x = converted(Looped(run), backward), torch.randn(5, WIDTH)
    net.skipped = 3
    loss = net(x).sum()
    loss.backward()
    net.skipped = 0
    loss = net(x).sum()
    loss.backward()


class Collecting(ResidualMLP):
    """Appends to a list and a mapping of its parent's."""

    def forward(self, x: Tensor, losses: list[Tensor], counts: dict[str, int]) -> Tensor:
        branch = self.inner(x)
        losses.append(branch.square().mean())
        counts["blocks"] = counts.get("blocks", 0) + 1
        return x + branch


def test_containers_that_blocks_write_into_are_the_parents_own() -> None:
    def run(parent: Looped, x: Tensor) -> Tensor:
        losses: list[Tensor] = []
        counts: dict[str, int] = {}
        for block in parent.blocks:
            x = block(x, losses, counts)
        assert counts == {"blocks": 4}
        assert len(losses) == 4
        return x * (1 + torch.stack(losses).sum())

    torch.manual_seed(0)
    model, x = Looped(run, Collecting), torch.randn(5, WIDTH)
    outcomes = [train_step(converted(model, backward), (x,)) for backward in BACKWARDS]
    assert_same(outcomes[1], outcomes[0])


def test_initial_velocity_of_a_sequential_block_is_refused() -> None:
    """nn.Sequential would call it as one of its own modules."""
    model = nn.Sequential(*[nn.Sequential(ResidualMLP(), ResidualMLP()) for _ in range(2)])
    with pytest.raises(mn.ConversionError, match=r"'0'.*Sequential.*initial_velocity"):
        mn.convert(model, streams=[""], initial_velocity=nn.Linear(WIDTH, WIDTH))


class Positioned(ResidualMLP):
    """Takes the stream as its second argument."""

    def forward(self, position: Tensor, x: Tensor) -> Tensor:
        return x + self.inner(x + position)


@pytest.mark.parametrize("gradients", [True, False])
def test_stream_that_begins_with_the_wrong_argument_is_refused(gradients: bool) -> None:
    def run(parent: Looped, x: Tensor) -> Tensor:
        position = torch.ones_like(x)
        for block in parent.blocks:
            x = block(position, x)
        return x

    net = converted(Looped(run, Positioned))
    with torch.set_grad_enabled(gradients), pytest.raises(mn.ConversionError, match="first argument"):
        net(torch.randn(5, WIDTH))


def test_functional_call_is_recomputed_with_the_parameters_it_was_given() -> None:
    """MAML and GradInit: a loss after a differentiable step, and its gradient at the parameters before."""
    torch.manual_seed(0)
    model, x = Looped(straight), torch.randn(5, WIDTH)
    gradients = []
    for backward in BACKWARDS:
        net = converted(model, backward)
        names, parameters = zip(*net.named_parameters(), strict=True)
        first = torch.autograd.grad(net(x).square().mean(), parameters, create_graph=True)
        stepped = {name: p - 0.1 * g for name, p, g in zip(names, parameters, first, strict=True)}
        loss = functional_call(net, stepped, (x,)).square().mean()
        gradients.append(torch.autograd.grad(loss, parameters))
        assert all(isinstance(p, nn.Parameter) for p in net.parameters())
    for got, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


class WithBuffers(ResidualMLP):
    """Reads two buffers, one of them integers; its norm reads its statistics in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("shift", torch.ones((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.norm(self.inner(x)).roll(int(self.shift), dims=-1)


@pytest.mark.parametrize("training", [True, False])
def test_functional_call_is_recomputed_with_the_buffers_it_was_given(training: bool) -> None:
    torch.manual_seed(0)
    model, x = Looped(straight, WithBuffers).train(training), torch.randn(5, WIDTH)
    gradients = []
    for backward in BACKWARDS:
        net = converted(model, backward)
        own = {name: buffer.clone() for name, buffer in net.named_buffers()}
        given = {name: buffer * 2 for name, buffer in own.items()}
        loss = functional_call(net, given, (x,)).square().mean()
        gradients.append(torch.autograd.grad(loss, list(net.parameters())))
        for name, buffer in net.named_buffers():
            assert torch.equal(buffer, own[name]), name
            assert buffer is not given[name]
    for got, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_parameter_stepped_between_two_backwards_through_one_block() -> None:
    """Those of the last recompute have been used, so it is made again, and sees the parameter that has changed."""

    def run(parent: Looped, x: Tensor) -> Tensor:
        return parent.blocks[0](x)

    net = converted(Looped(run))
    loss = net(torch.randn(5, WIDTH)).square().sum()
    loss.backward(retain_graph=True)
    with torch.no_grad():
        net.blocks[0].inner[2].weight.mul_(2)
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.0.*'weight' was changed between"):
        loss.backward()


class Nested(nn.Module):
    """A residual block whose branch is itself a stream, which outgrows the scale of its first pass."""

    def __init__(self) -> None:
        super().__init__()
        functions = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), Scaled(20.0)) for _ in range(4)]
        self.net = mn.MomentumNet(functions, gamma=0.75, use_backprop=False)  # uses the whole word, so it overflows
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.out(self.net(0.3 * x))


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_stream_inside_a_block_is_recomputed_at_the_scale_of_its_forward(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, x = Looped(straight, Nested), torch.randn(5, WIDTH)
    # The outer state uses the whole word at this gamma, too: it sees what another scale does to the inner one's output.
    with caplog.at_level("INFO", logger="momentumnet"):
        outcomes = [train_step(converted(model, backward, gamma=0.75), (x,)) for backward in BACKWARDS]
    assert_same(outcomes[1], outcomes[0])
    assert "widened" in caplog.text


def test_checkpointed_classifier_that_begins_in_place() -> None:
    """torchvision's classifiers begin with Dropout(inplace=True)."""
    torch.manual_seed(0)
    model, x = mnasnet0_5(num_classes=4), torch.randn(2, 3, 64, 64)
    outcomes = [train_step(mn.convert(model, x, others=others), (x,)) for others in ("keep", "checkpoint")]
    assert_same(outcomes[1], outcomes[0])


def test_unknown_value_of_others_is_refused_for_streams_named_by_hand() -> None:
    with pytest.raises(ValueError, match="others"):
        converted(Looped(straight), others="sideways")


def test_momentum_net_at_gamma_zero_is_reversible_once_gamma_is_set() -> None:
    net = mn.MomentumNet([nn.Linear(WIDTH, WIDTH)] * 3, gamma=0.0, use_backprop=False)
    mn.set_gamma(net, 0.5)
    assert net.stream.backward == "reversible"


def test_momentum_net_uses_the_initial_function_that_is_registered() -> None:
    net = mn.MomentumNet([ResidualMLP()] * 2, gamma=0.5, init_speed=True, init_function=nn.Linear(WIDTH, WIDTH))
    x = torch.randn(5, WIDTH)
    before = net(x)
    net.init = nn.Linear(WIDTH, WIDTH)
    assert not torch.equal(net(x), before)


def test_conversion_in_place_that_is_refused_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(ResidualMLP(), torch.jit.script(nn.Linear(WIDTH, WIDTH)))
    with pytest.raises(mn.ConversionError, match="ScriptModule"):
        mn.convert(model, streams=[""], inplace=True)
    assert type(model[0]) is ResidualMLP
    assert "_momentumnet_role" not in model[0].__dict__


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_recomputed_module_may_hold_a_script_with_a_norm() -> None:
    x, gradients = torch.randn(16, WIDTH), []
    for options in ({"backward": "checkpointed", "others": "checkpoint"}, {}):
        torch.manual_seed(0)
        scripted = torch.jit.script(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh()))
        model = nn.Sequential(ResidualMLP(), ResidualMLP(), nn.Sequential(scripted, nn.Linear(WIDTH, 3)))
        net = mn.convert(model, x, gamma=0, inplace=True, **options)  # in copies that PyTorch makes of scripts ...
        for _ in range(4):  # the first calls of a script are profiled
            net.zero_grad()
            net(x).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])  # ... parameters are no leaves
    torch.testing.assert_close(*gradients)
