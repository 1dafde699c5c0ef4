"""Models and examples without values, on the meta device or fake: planned, converted, loaded, and exact then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torchvision.models import resnet18

import momentumnet as mn
from tests.contract.read_counts import reads
from tests.contract.reference import assert_same, train_step
from tests.models import WIDTH, Case, Chain, ResidualMLP


def on_meta(values: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda value: value.to("meta"), values)


def sizes(plan: Any) -> list[Any]:
    return [
        (row.path, row.blocks, row.kind, row.shape, row.saved_before, row.saved_after, row.checkpointed)
        for row in plan.rows
    ]


@pytest.mark.parametrize("others", ["keep", "checkpoint"])
def test_plan_on_meta_is_that_of_values(case: Case, others: str) -> None:
    expected = mn.plan(case.model(), case.example(), others=others)
    found = mn.plan(case.model().to("meta"), on_meta(case.example()), others=others)
    assert [row[:4] for row in sizes(found)] == [row[:4] for row in sizes(expected)]
    assert found.recomputed == expected.recomputed
    for one, other in zip(sizes(found), sizes(expected), strict=True):
        assert one[5:] == other[5:]
        # On the meta device PyTorch takes attention by the plain formula, which keeps more, and batch norms keep a few
        # bytes a channel that they do not keep on the CPU in eval mode.
        assert other[4] <= one[4] <= 1.25 * other[4]
    assert expected.saved_before <= found.saved_before <= 1.25 * expected.saved_before
    assert expected.saved_after <= found.saved_after <= 1.25 * expected.saved_after


def test_plan_of_fake_tensors_is_that_of_values(case: Case) -> None:
    expected = mn.plan(case.model(), case.example(), others="checkpoint")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    given = pytree.tree_map_only(Tensor, mode.from_tensor, case.example())
    found = mn.plan(case.model(), given, others="checkpoint")
    assert sizes(found) == sizes(expected)
    assert (found.saved_before, found.saved_after) == (expected.saved_before, expected.saved_after)
    with FakeTensorMode():
        model, example = resnet18(), torch.zeros(1, 3, 64, 64)
        within = mn.plan(model, example)
    assert sizes(within) == sizes(mn.plan(resnet18(), torch.randn(1, 3, 64, 64)))


def test_what_is_planned_and_converted_reads_nothing_and_keeps_no_values() -> None:
    model = Chain([ResidualMLP() for _ in range(4)]).to("meta")
    with reads() as counts:
        net = mn.convert(model, torch.zeros(3, WIDTH, device="meta"))
    assert not counts.total()
    output = net(torch.zeros(3, WIDTH, device="meta"))
    output.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in net.parameters())


@pytest.mark.parametrize(
    "options", [{}, {"others": "checkpoint"}, {"spare": 2000, "gamma": 0.125}, {"arithmetic": "float"}], ids=str
)
def test_loaded_after_conversion_it_trains_as_stored(case: Case, options: dict[str, Any]) -> None:
    """Steps from weights that came after the conversion; the scale is learnt in the first."""
    weights = case.model().state_dict()
    outcomes = []
    for backward in ("stored", "reversible"):
        is_planned = "spare" in options and backward != "stored"
        given = dict(options) if is_planned else {**options, "backward": backward}
        if not is_planned:
            given.pop("spare", None)
        net = mn.convert(case.model().to("meta"), on_meta(case.example()), **given).to_empty(device="cpu")
        net.load_state_dict(weights)
        steps = []
        for seed in range(3 if options.get("arithmetic") != "float" else 1):
            steps.append(train_step(net, case.example(), seed=seed))
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter -= 0 if parameter.grad is None else 0.01 * parameter.grad
            net.zero_grad(set_to_none=True)
        outcomes.append(steps)
    tolerance = 1e-4 if options.get("arithmetic") == "float" else 1e-6
    for stored, reversible in zip(*outcomes, strict=True):
        assert_same(reversible, stored, tolerance)


def test_values_far_from_one_after_loading() -> None:
    """Nothing of the scale is guessed from an example without values."""
    weights = Chain([ResidualMLP() for _ in range(4)]).state_dict()
    weights["stem.weight"] = weights["stem.weight"] * 1e6
    x = torch.randn(5, WIDTH)
    outcomes = []
    for backward in ("stored", "reversible"):
        model = Chain([ResidualMLP() for _ in range(4)]).to("meta")
        net = mn.convert(model, x.to("meta"), backward=backward).to_empty(device="cpu")
        net.load_state_dict(weights)
        outcomes.append(train_step(net, (x,)))
    assert_same(outcomes[1], outcomes[0], tolerance=0)
    exact = mn.convert(Chain([ResidualMLP() for _ in range(4)]).double(), x.double(), arithmetic="float")
    exact.load_state_dict({name: value.double() for name, value in weights.items()})
    torch.testing.assert_close(outcomes[1].output.double(), exact(x.double()).detach(), rtol=1e-4, atol=1.0)


def test_decoder_of_transformers_whose_forward_reads_values() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=100,
        use_cache=False,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(5, 90, (2, 12))
    found = mn.plan(model, ids.to("meta"))
    expected = mn.plan(transformers.LlamaForCausalLM(config), ids)
    assert [row[:4] + row[5:] for row in sizes(found)] == [row[:4] + row[5:] for row in sizes(expected)]
    assert expected.saved_before <= found.saved_before <= 1.25 * expected.saved_before


def test_fake_parameters_cannot_be_copied() -> None:
    with FakeTensorMode():
        model, x = Chain([ResidualMLP() for _ in range(3)]), torch.zeros(2, WIDTH)
        with pytest.raises(mn.ConversionError, match="inplace=True"):
            mn.convert(model, x)
        net = mn.convert(model, x, inplace=True)
        net(x).sum().backward()
        assert net.stem.weight.grad is not None
        with pytest.raises(mn.ConversionError, match="inplace=True"):
            mn.revert(net)


def test_example_of_zeros_teaches_nothing() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x).tanh()

    torch.manual_seed(0)
    model, x = nn.Sequential(*[Linear() for _ in range(4)]), 1e-3 * torch.randn(5, WIDTH)
    zeros = mn.convert(model, torch.zeros(5, WIDTH))
    assert_same(train_step(zeros, (x,)), train_step(mn.convert(model, streams=[""]), (x,)), tolerance=0)
