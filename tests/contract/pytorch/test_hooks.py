"""Contract line 9: hooks on parameters and modules."""

from __future__ import annotations

import torch
from torch import Tensor

import momentumnet as mn
from tests.contract.reference import assert_same, loss_of, pair, train_step
from tests.models import WIDTH, Case, Chain, ResidualMLP


def test_parameter_hooks_fire_once_and_the_optimizer_may_step_inside_backward(case: Case) -> None:
    outcomes = []
    for net in pair(case):
        fired: dict[str, int] = {}
        before = {name: p.detach().clone() for name, p in net.named_parameters()}

        def step(parameter: Tensor, name: str, fired: dict[str, int] = fired) -> None:
            fired[name] = fired.get(name, 0) + 1
            with torch.no_grad():
                parameter.sub_(parameter.grad, alpha=0.1)
            parameter.grad = None

        for name, parameter in net.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda p, name=name, step=step: step(p, name))
        torch.manual_seed(3)
        loss_of(net(*case.example())).backward()
        assert fired
        assert set(fired.values()) == {1}
        outcomes.append({name: p.detach() - before[name] for name, p in net.named_parameters()})
    for name, change in outcomes[0].items():
        assert torch.equal(outcomes[1][name], change), name


def test_module_hooks_see_the_block_itself_in_forward_and_in_recompute(case: Case) -> None:
    """As with torch.utils.checkpoint: hooks are part of what is recomputed, so hooks that change values work."""
    _, net = pair(case)
    stream = mn.find_streams(case.model(), case.example())[0]
    calls: list[str] = []
    for name in stream.blocks:
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    loss = loss_of(net(*case.example()))
    assert calls == list(stream.blocks)
    loss.backward()
    assert calls == [*stream.blocks, *reversed(stream.blocks)]


def test_hooks_that_change_values_are_recomputed_as_well() -> None:
    torch.manual_seed(0)
    model, x = Chain([ResidualMLP() for _ in range(3)]), torch.randn(5, WIDTH)
    outcomes = []
    for backward in ("stored", "reversible"):
        net = mn.convert(model, (x,), backward=backward)
        net.blocks[1].register_forward_hook(lambda module, args, output: output * 1.5)
        net.blocks[2].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        outcomes.append(train_step(net, (x,)))
    assert_same(outcomes[1], outcomes[0])
