"""Contract lines 10, 11 and 14: the converted network as a module, without gradients, and the function it keeps."""

from __future__ import annotations

import copy
import io
import pickle
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import momentumnet as mn
from momentumnet.streams.blocks.converted import ConvertedBlock, streams_of
from tests.contract.reference import assert_same, pair, train_step
from tests.models import WIDTH, Case, Chain, ResidualMLP


def test_state_dict_goes_both_ways(case: Case) -> None:
    original = case.model()
    converted = mn.convert(original, case.example())
    assert list(converted.state_dict()) == list(original.state_dict())
    assert type(converted) is type(original)
    torch.manual_seed(99)
    stock = case.build().state_dict()
    converted.load_state_dict(stock)
    train_step(converted, case.example())
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.sub_(parameter.grad if parameter.grad is not None else 0)
    original.load_state_dict(converted.state_dict())
    for name, value in converted.state_dict().items():
        assert torch.equal(original.state_dict()[name], value)


def _by_deepcopy(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net)


def _by_pickle(net: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(net))


def _by_torch_save(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _picklable(case: Case) -> bool:
    return case.name != "spectral_norm"  # PyTorch itself refuses to pickle parametrized modules


@pytest.mark.parametrize("duplicate", [_by_deepcopy, _by_pickle, _by_torch_save])
def test_copies_train_alike_and_apart(case: Case, duplicate: Any) -> None:
    if duplicate is not _by_deepcopy and not _picklable(case):
        pytest.skip("PyTorch refuses to pickle modules with parametrizations")
    net = mn.convert(case.model(), case.example())
    twin = duplicate(net)
    assert all(a is not b for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    assert_same(train_step(twin, case.example()), train_step(net, case.example()))
    mn.set_gamma(twin, 0.5)
    assert {stream.gamma for stream in streams_of(net)} == {Fraction(1, 8)}
    other = train_step(mn.revert(net), case.example()).output
    assert not torch.equal(train_step(twin, case.example()).output, other)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("duplicate", [_by_deepcopy, _by_pickle, _by_torch_save])
def test_copies_after_a_pass_that_left_out_the_last_block(duplicate: Any, gradients: bool) -> None:
    torch.manual_seed(0)
    net, x = mn.convert(Chain([ResidualMLP() for _ in range(3)]), streams=["blocks"]), torch.randn(5, WIDTH)
    with torch.set_grad_enabled(gradients):
        value = net.blocks[0](x)
    twin = duplicate(net)
    assert value.shape == x.shape  # it is still alive, and the pass could go on
    assert_same(train_step(twin, (x,)), train_step(net, (x,)))


def test_convert_leaves_the_original_alone_and_revert_gives_it_back(case: Case) -> None:
    original, example = case.model(), case.example()
    classes = [type(module) for module in original.modules()]
    before = {name: value.clone() for name, value in original.state_dict().items()}
    converted = mn.convert(original, example)
    assert [type(module) for module in original.modules()] == classes
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert original.training
    back = mn.revert(converted)
    assert [type(module) for module in back.modules()] == classes
    assert_same(train_step(back, example), train_step(original, example))
    assert any(isinstance(module, ConvertedBlock) for module in converted.modules())
    mn.revert(converted, inplace=True)
    assert [type(module) for module in converted.modules()] == classes
    with pytest.raises(mn.ConversionError, match="nothing to revert"):
        mn.revert(converted)


@pytest.mark.parametrize("inplace", [True, False])
def test_revert_of_a_block_wrapped_after_conversion_is_refused(inplace: bool) -> None:
    """fully_shard puts a class of its own before the block's."""

    class Sharding:
        pass

    net = mn.convert(Chain([ResidualMLP(), ResidualMLP()]), streams=["blocks"])
    kind = type(net.blocks[1])
    net.blocks[1].__class__ = type(f"Sharded{kind.__name__}", (Sharding, kind), {})
    with pytest.raises(mn.ConversionError, match="wrapped again"):
        mn.revert(net, inplace=inplace)


def test_convert_in_place_keeps_the_parameters(case: Case) -> None:
    original = case.model()
    parameters = list(original.parameters())
    assert mn.convert(original, case.example(), inplace=True) is original
    assert all(a is b for a, b in zip(parameters, original.parameters(), strict=True))


def test_blocks_stay_what_they_were(case: Case) -> None:
    original = case.model()
    converted = mn.convert(original, case.example())
    for name, module in original.named_modules():
        twin = converted.get_submodule(name)
        assert isinstance(twin, type(module))
        assert type(twin).__name__ == type(module).__name__


def test_initial_velocity_module_is_trained_and_reverted() -> None:
    torch.manual_seed(0)
    chain, x = Chain([ResidualMLP(), ResidualMLP()]), torch.randn(5, WIDTH)
    start = nn.Linear(WIDTH, WIDTH)
    outcomes = [
        train_step(mn.convert(chain, (x,), backward=b, initial_velocity=copy.deepcopy(start)), (x,))
        for b in ("stored", "reversible")
    ]
    assert_same(outcomes[1], outcomes[0])
    assert outcomes[1].gradients["blocks.0.initial_velocity.weight"].abs().sum() > 0
    net = mn.convert(chain, (x,), initial_velocity=start)
    assert list(mn.revert(net).state_dict()) == list(chain.state_dict())


class Operations(TorchDispatchMode):
    """Counts the operations that touch memory, and names those that make integers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.integers: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        unchanged = str(func) == "aten.to.dtype" and out.dtype == args[0].dtype
        if not unchanged and str(func) not in ("aten.detach.default", "aten.promote_types.default"):
            self.count += 1
            if isinstance(out, Tensor) and out.dtype in (torch.int32, torch.int64) and out.numel() > 1:
                self.integers.append(str(func))
        return out


@pytest.mark.parametrize("gradients", ["no_grad", "inference_mode"])
def test_without_gradients_it_costs_the_plain_rule_and_holds_nothing(case: Case, gradients: str) -> None:
    model = case.model().eval()
    converted = mn.convert(model, case.example()).eval()
    blocks = sum(len(stream) for stream in mn.find_streams(model, case.example()))
    counts = []
    with getattr(torch, gradients)():
        for net in (model, converted):
            with Operations() as operations:
                output = net(*case.example())
            counts.append(operations.count)
            assert not operations.integers
    # f = y - x, v = gamma v + w f (two operations), x = x + v in each block; the flush once.
    assert counts[1] - counts[0] <= 4 * blocks + 1
    assert not output.requires_grad
    with getattr(torch, gradients)():
        report = mn.measure_memory(lambda: converted(*case.example()))
        plain = mn.measure_memory(lambda: model(*case.example()))
    assert report.saved_bytes <= plain.saved_bytes + 64


def test_without_gradients_the_output_is_that_with_gradients(case: Case) -> None:
    net = mn.convert(case.model(), case.example()).eval()
    with_gradients = net(*case.example())
    with torch.no_grad():
        torch.testing.assert_close(net(*case.example()), with_gradients.detach(), rtol=1e-5, atol=1e-5)


def test_gamma_zero_gives_the_original_outputs(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    model = case.model()
    with caplog.at_level("WARNING", logger="momentumnet"):
        net = mn.convert(model, case.example(), gamma=0)
    assert "stored activations" in caplog.text
    got, expected = train_step(net, case.example()), train_step(model, case.example())
    assert_same(got, expected, tolerance=0)


def test_momentum_net_at_gamma_zero_is_the_residual_network() -> None:
    torch.manual_seed(0)
    functions, x = [nn.Linear(WIDTH, WIDTH) for _ in range(3)], torch.randn(5, WIDTH)
    net = mn.MomentumNet(functions, gamma=0, use_backprop=False)
    expected = x
    for function in functions:
        expected = expected + function(expected)
    output = net(x)
    torch.testing.assert_close(output, expected)
    gradients = [torch.autograd.grad(y.square().sum(), list(net.parameters())) for y in (output, expected)]
    torch.testing.assert_close(*gradients)


def test_gamma_is_an_eighth_by_default(case: Case) -> None:
    assert {stream.gamma for stream in streams_of(mn.convert(case.model(), case.example()))} == {Fraction(1, 8)}
    assert mn.plan(case.model(), case.example()).gamma == Fraction(1, 8)


def test_flush_restores_the_sum_of_branches_that_do_not_depend_on_x() -> None:
    """Then momentum only delays the branches, and the flush brings the rest: any gamma gives the original output."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Parameter(torch.randn(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch

    torch.manual_seed(0)
    model, x = nn.Sequential(*[Constant() for _ in range(6)]), torch.randn(5, WIDTH)
    for gamma in (1 / 64, 1 / 8, 0.5, 0.9, 0.99):
        net = mn.convert(model, streams=[""], gamma=gamma)
        torch.testing.assert_close(net(x), model(x), rtol=1e-5, atol=1e-4)
        dropped = mn.convert(model, streams=[""], gamma=gamma, final_velocity="drop")
        assert (dropped(x) - model(x)).abs().max() > 1e-3


def test_small_gamma_stays_near_the_original(case: Case) -> None:
    model = case.model().eval()
    expected = model(*case.example()).detach()
    errors = []
    for gamma in (1 / 2, 1 / 8, 1 / 64):
        net = mn.convert(model, case.example(), gamma=gamma).eval()
        errors.append(float((net(*case.example()).detach() - expected).norm() / expected.norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1


def test_set_gamma_takes_effect_on_the_next_forward(case: Case) -> None:
    net = mn.convert(case.model(), case.example(), gamma=0.9)
    mn.set_gamma(net, 0.25)
    expected = mn.convert(case.model(), case.example(), gamma=0.25)
    assert_same(train_step(net, case.example()), train_step(expected, case.example()))
    with pytest.raises(ValueError, match="gamma"):
        mn.set_gamma(net, 2)
    with pytest.raises(mn.ConversionError, match="no momentum stream"):
        mn.set_gamma(case.model(), 0.5)


def test_gamma_changed_between_forward_and_backward_does_not_disturb_the_pass(case: Case) -> None:
    outcomes = []
    for net in pair(case):

        def backward(output: Tensor, net: nn.Module = net) -> None:
            mn.set_gamma(net, 0.7)
            output.float().square().mean().backward()

        outcomes.append(train_step(net, case.example(), backward=backward))
    assert_same(outcomes[1], outcomes[0])


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
