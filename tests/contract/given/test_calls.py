"""Contract lines 6 and 7: parameters, and arguments of every kind."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.parents import Parent, straight
from tests.contract.reference import assert_same, loss_of, pair, train_step
from tests.models import WIDTH, Case, Chain, ResidualMLP


@pytest.mark.parametrize("keep", ["first half", "second half", "every second", "none of the blocks"])
def test_frozen_subsets(case: Case, keep: str) -> None:
    outcomes = []
    for net in pair(case):
        parameters = list(net.named_parameters())
        for index, (name, parameter) in enumerate(parameters):
            trained = {
                "first half": index < len(parameters) // 2,
                "second half": index >= len(parameters) // 2,
                "every second": index % 2 == 0,
                "none of the blocks": not any(part in name for part in ("blocks", "layers", "layer1")),
            }[keep]
            parameter.requires_grad_(trained)
        outcomes.append(train_step(net, case.example()))
    assert_same(outcomes[1], outcomes[0])


def test_input_without_gradient_and_trainable_parameters(case: Case) -> None:
    stored, reversible = pair(case)
    for net in (stored, reversible):
        torch.manual_seed(3)
        loss_of(net(*case.example())).backward()
    for name, parameter in stored.named_parameters():
        other = reversible.get_parameter(name).grad
        assert (parameter.grad is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(other, parameter.grad, rtol=1e-6, atol=1e-9)


def test_stream_on_the_very_input_of_the_model() -> None:
    """The first block takes the user's leaf tensor, whose gradient has to arrive."""
    torch.manual_seed(0)
    blocks = nn.Sequential(*[ResidualMLP() for _ in range(3)])
    x = torch.randn(5, WIDTH)
    outcomes = [train_step(mn.convert(blocks, x, backward=b), (x,)) for b in ("stored", "reversible")]
    assert_same(outcomes[1], outcomes[0])
    assert outcomes[1].gradients["input 0"] is not None


def test_shared_blocks() -> None:
    torch.manual_seed(0)
    shared = ResidualMLP()
    chain = Chain([shared, ResidualMLP(), shared, shared])
    x = torch.randn(5, WIDTH)
    outcomes = [train_step(mn.convert(chain, (x,), backward=b), (x,)) for b in ("stored", "reversible")]
    assert_same(outcomes[1], outcomes[0])


class Looping(nn.Module):
    """Calls one block four times."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ResidualMLP()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = self.block(x)
        return x


def test_one_block_called_four_times() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, WIDTH)
    model = Looping()
    assert [len(stream) for stream in mn.find_streams(model, x)] == [4]
    outcomes = [train_step(mn.convert(model, x, backward=b), (x,)) for b in ("stored", "reversible")]
    assert_same(outcomes[1], outcomes[0])


def test_unused_parameters_have_no_gradient() -> None:
    class WithSpare(ResidualMLP):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(3, 3)

    torch.manual_seed(0)
    chain, x = Chain([WithSpare(), WithSpare()]), torch.randn(5, WIDTH)
    outcomes = [train_step(mn.convert(chain, (x,), backward=b), (x,)) for b in ("stored", "reversible")]
    assert_same(outcomes[1], outcomes[0])
    assert outcomes[1].gradients["blocks.0.spare.weight"] is None


def test_gradients_pass_a_block_whose_output_needs_none() -> None:
    class Frozen(ResidualMLP):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(x)

    torch.manual_seed(0)
    chain, x = Chain([ResidualMLP(), Frozen(), ResidualMLP()]), torch.randn(5, WIDTH)
    outcomes = [train_step(mn.convert(chain, streams=["blocks"], backward=b), (x,)) for b in ("stored", "reversible")]
    assert_same(outcomes[1], outcomes[0])
    assert outcomes[1].gradients["blocks.0.inner.0.weight"] is not None
    assert outcomes[1].gradients["blocks.1.inner.0.weight"] is None


class Named(NamedTuple):
    """A block's output with names."""

    x: Tensor
    n: int


class Wrapper(nn.Module):
    """A block with a given forward."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.run = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self.inner, *args, **kwargs)


@pytest.mark.parametrize(
    ("block", "unpack"),
    [
        (lambda f, x: (x + f(x), None), lambda y: y[0]),
        (lambda f, x: [x + f(x), 3], lambda y: y[0]),
        (lambda f, x: {"x": x + f(x), "n": 1}, lambda y: y["x"]),
        (lambda f, x: (x + f(x), (2, 3)), lambda y: y[0]),
        (lambda f, x: Named(x + f(x), 1), lambda y: y.x),
    ],
)
def test_outputs_keep_their_container(block: Any, unpack: Any) -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Wrapper(block) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            for one in self.blocks:
                y = one(x)
                assert type(y) is type(block(torch.zeros_like, torch.zeros(1)))
                x = unpack(y)
            return x

    torch.manual_seed(0)
    x = torch.randn(5, WIDTH)
    outcomes = [train_step(mn.convert(Parent(), x, backward=b), (x,)) for b in ("stored", "reversible")]
    assert outcomes[0].output.shape == outcomes[1].output.shape
    model = Parent()
    outcomes = [train_step(mn.convert(model, x, backward=b), (x,)) for b in ("stored", "reversible")]
    assert_same(outcomes[1], outcomes[0])


def test_wrong_shape_and_missing_tensor_are_refused() -> None:
    net = mn.convert(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6)), streams=[""])
    with pytest.raises(mn.ConversionError, match=r"'0'.*\(2, 6\).*\(2, 4\)"):
        net(torch.randn(2, 4))
    net = mn.convert(nn.Sequential(Wrapper(lambda f, xs: xs), Wrapper(lambda f, xs: xs)), streams=[""])
    with pytest.raises(mn.ConversionError, match="floating-point tensor"):
        net([torch.randn(2, WIDTH)])


def test_side_inputs_reach_every_block_and_get_gradients(case: Case) -> None:
    stored, reversible = pair(case)
    expected, got = train_step(stored, case.example()), train_step(reversible, case.example())
    for index in range(len(case.example())):
        gradient = got.gradients[f"input {index}"]
        assert gradient is not None
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(gradient, expected.gradients[f"input {index}"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("backward", ["stored", "reversible"])
def test_keyword_tensors_and_second_outputs_against_the_rule(backward: str) -> None:
    """An independent reference: what the stream drops, it drops with stored activations too."""

    class Attending(ResidualMLP):
        def forward(self, x: Tensor, *, memory: Tensor) -> tuple[Tensor, Tensor]:
            branch = self.inner(x + memory)
            return x + branch, branch.mean()

    torch.manual_seed(0)
    model, gamma = nn.ModuleList([Attending() for _ in range(3)]).double(), 0.5
    net = mn.convert(model, streams=[""], gamma=gamma, backward=backward)
    x, memory = (torch.randn(5, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y, extras = x, []
    for block in net:
        y, extra = block(y, memory=memory)
        extras.append(extra)
    got = torch.autograd.grad(y.square().sum() * (1 + sum(extras)), [x, memory])
    y, v, extras = x, torch.zeros_like(x), []
    for block in model:
        output, extra = block(y, memory=memory)
        v = gamma * v + (1 - gamma) * (output - y)
        y = y + v
        extras.append(extra)
    y = y + gamma / (1 - gamma) * v
    expected = torch.autograd.grad(y.square().sum() * (1 + sum(extras)), [x, memory])
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


class Remembering(ResidualMLP):
    """Reads what the blocks before have written into a container that it is given, and writes there itself."""

    def forward(self, x: Tensor, memory: Any) -> Tensor:
        written = memory if isinstance(memory, list) else memory["h"]
        branch = self.inner(x + sum(written))
        written.append(branch)
        return x + branch


@pytest.mark.parametrize("backward", ["stored", "checkpointed", "reversible"])
@pytest.mark.parametrize("make", [lambda x: [x], lambda x: {"x": x, "h": []}, lambda x: {"x": (x,), "h": [x]}])
def test_a_container_that_holds_the_streams_first_tensor_stays_the_callers_own(make: Any, backward: str) -> None:
    """What the first block writes there reaches the others, against the rule."""
    torch.manual_seed(0)
    model, gamma = nn.ModuleList([Remembering() for _ in range(4)]).double(), 0.5
    net = mn.convert(model, streams=[""], gamma=gamma, backward=backward)
    x = torch.randn(5, WIDTH, dtype=torch.float64, requires_grad=True)
    y, memory = x, make(x)
    for block in net:
        y = block(y, memory)
    assert memory[0] is x if isinstance(memory, list) else memory["x"] is x or memory["x"][0] is x
    got = torch.autograd.grad(y.square().sum(), [x, *net.parameters()])
    z, v, memory = x, torch.zeros_like(x), make(x)
    for block in model:
        v = gamma * v + (1 - gamma) * (block(z, memory) - z)
        z = z + v
    z = z + gamma / (1 - gamma) * v
    torch.testing.assert_close(y, z, rtol=1e-9, atol=1e-10)
    expected = torch.autograd.grad(z.square().sum(), [x, *model.parameters()])
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_options_that_do_not_exist_are_refused() -> None:
    x = torch.randn(5, WIDTH)
    model = Parent(straight)
    for option in ("arithmetic", "backward", "final_velocity", "others", "initial_velocity"):
        with pytest.raises(ValueError, match=option):
            mn.convert(model, x, **{option: "sideways"})
    with pytest.raises(TypeError, match="unknown"):
        mn.convert(model, x, unknown=1)
    for gamma in (-0.1, 1.5, float("nan"), 1e-4):
        with pytest.raises(ValueError, match="gamma"):
            mn.convert(model, x, gamma=gamma)
    with pytest.raises(ValueError, match="flush"):
        mn.convert(model, x, gamma=1.0)
    with pytest.raises(mn.ConversionError, match="example_inputs"):
        mn.convert(model)
    with pytest.raises(mn.ConversionError, match="already"):
        mn.convert(mn.convert(model, x), x)
    with pytest.raises(mn.ConversionError, match="nowhere"):
        mn.convert(model, streams=["nowhere"])
