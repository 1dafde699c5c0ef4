"""Couplings beyond momentum: their formulas in float64, their bits, and what `convert` makes of them."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.core.rewind.tape import Tape
from momentumnet.core.state.exact_state import ExactState
from tests.contract.read_counts import reads
from tests.contract.reference import COUPLED, assert_same, assert_same_beyond_the_scale, train_step
from tests.contract.streams.coupled_chains import RULES, by_formula, chain, converted, rows, rules
from tests.models import WIDTH, Chain, ResidualMLP


@pytest.mark.parametrize(
    ("depth", "coupling"),
    [*((depth, coupling) for depth in (1, 50) for coupling in RULES), (1000, "bdia"), (1000, RULES[2])],
    ids=str,
)
def test_gradients_and_states_equal_stored(depth: int, coupling: Any, watched: list[bool]) -> None:
    model = chain(depth)
    stored = train_step(converted(model, coupling, "stored"), (rows(),))
    assert not watched
    assert_same(train_step(converted(model, coupling), (rows(),)), stored, tolerance=0)
    assert len(watched) >= depth
    assert all(watched)
    if depth == 50:
        assert_same(train_step(converted(model, coupling, "checkpointed"), (rows(),)), stored, tolerance=0)


@rules
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-6), (torch.float32, 2.0)])
@pytest.mark.parametrize("depth", [2, 30])
def test_against_float64_autograd(depth: int, dtype: torch.dtype, most: float, coupling: Any) -> None:
    """At most twice the error of float32's own backpropagation, plus 18 bits in short float32 streams."""
    model = chain(depth)

    def gradient(kind: torch.dtype, run: Callable[[Chain], Callable[[Tensor], Tensor]]) -> Tensor:
        net = copy.deepcopy(model).to(kind)
        x = rows().to(kind).requires_grad_()
        function = run(net)
        torch.manual_seed(3)
        function(x).square().mean().backward()
        return torch.cat([value.grad.double().flatten() for value in (x, *net.parameters())])

    def formula(net: Chain) -> Callable[[Tensor], Tensor]:
        return lambda x: by_formula(net, coupling, x)

    exact, plain = gradient(torch.float64, formula), gradient(torch.float32, formula)
    ours = gradient(dtype, lambda net: converted(net, coupling, inplace=True))
    short = 2.0**-18 * float(exact.norm()) if depth <= 8 and dtype == torch.float32 else 0.0
    assert (ours - exact).norm() <= most * (plain - exact).norm() + short


@rules
def test_values_that_outgrow_their_scale_and_nan(coupling: Any) -> None:
    assert_same_beyond_the_scale(lambda how: converted(chain(10), coupling, how), rows)


@rules
def test_without_gradients_and_in_ordinary_operations(coupling: Any) -> None:
    model = chain(7)
    net = converted(model, coupling)

    def seeded(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return function(x)

    expected = seeded(lambda x: by_formula(model, coupling, x), rows())
    with torch.no_grad():
        torch.testing.assert_close(seeded(net, rows()), expected)
    with torch.inference_mode():
        torch.testing.assert_close(seeded(net, rows()), expected)
    mapped = seeded(torch.func.vmap(net), rows().unsqueeze(1)) if coupling != "bdia" else expected
    torch.testing.assert_close(mapped.reshape(expected.shape), expected)
    torch.testing.assert_close(seeded(net, rows()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", COUPLED, ids=str)
def test_compiled_it_is_correct(options: dict[str, Any]) -> None:
    stored, reversible = (mn.convert(chain(3), rows(), backward=how, **options) for how in ("stored", "reversible"))
    expected = train_step(stored, (rows(),))
    got = train_step(torch.compile(reversible, backend="aot_eager"), (rows(),))
    torch.testing.assert_close(got.output, expected.output, rtol=1e-4, atol=1e-5)
    for name, gradient in expected.gradients.items():
        found = got.gradients[name if name.startswith("input") else f"_orig_mod.{name}"]
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5)


def test_float_arithmetic_is_near_where_it_does_not_warn() -> None:
    for coupling, depth in (("bdia", 8), (mn.Dr2Net(alpha=0.3, beta=0.7), 12)):
        stored, inverse = (
            train_step(converted(chain(depth), coupling, how, arithmetic="float"), (rows(),))
            for how in ("stored", "reversible")
        )
        for name, gradient in stored.gradients.items():
            torch.testing.assert_close(inverse.gradients[name], gradient, rtol=1e-3, atol=1e-5)
    with pytest.warns(mn.MomentumNetWarning, match="arithmetic='float'"):
        converted(chain(20), "bdia", arithmetic="float")


def tapes_at_rest() -> list[Tape]:
    gc.collect()
    tapes = [found for found in gc.get_objects() if type(found) is Tape]
    return [tape for tape in tapes if isinstance(tape.state, ExactState) and tape.state.packed_bytes]


@pytest.mark.parametrize(("coupling", "bits"), [("bdia", 1), (mn.Dr2Net(beta=1 / 8), 3), ("dr2net", 6)], ids=str)
def test_bits_that_a_block_takes(coupling: Any, bits: int) -> None:
    """Of each element, in the store and the bytes that it has put aside."""
    held = []
    for depth in (16, 80):
        shared = ResidualMLP()
        for parameter in shared.parameters():
            nn.init.zeros_(parameter)
        model = nn.Sequential(*[shared] * depth)
        x = torch.randn(64, WIDTH)
        net = mn.convert(model, streams=[""], coupling=coupling)
        torch.manual_seed(0)
        before = tapes_at_rest()  # that other tests have left in the process
        output = net(x)
        tapes = [tape for tape in tapes_at_rest() if not any(tape is other for other in before)]
        spilled = [step.undo.spilled for tape in tapes for step in tape.steps if step.undo.spilled is not None]
        stores = sum(tape.state.packed_bytes for tape in tapes)
        held.append((stores + sum(map(torch.numel, spilled)) / x.numel()) * 8)
        del output, tapes, spilled, before
    # The growth of Dr2Net's values takes some bits of the state itself.
    assert 64 * bits - 8 <= held[1] - held[0] <= 64 * bits + 24


def test_bdia_draws_by_the_generator_and_is_the_network_itself_on_average_and_in_eval_mode() -> None:
    model = Chain([nn.Sequential(nn.Linear(WIDTH, WIDTH)) for _ in range(4)])

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return x + 0.3 * self.inner(x)

    model.blocks = nn.ModuleList([Linear() for _ in range(4)])
    net = converted(model, "bdia")
    with torch.no_grad():
        outputs = [net(rows()) for _ in range(400)]
        assert len({output.sum().item() for output in outputs}) == 8  # 2**3 choices behind the first block
        expected = model(rows())
        spread = torch.stack(outputs).std(0) / 400**0.5
        assert ((torch.stack(outputs).mean(0) - expected).abs() <= 5 * spread + 1e-6).all()  # of linear branches
    torch.manual_seed(7)
    one = net(rows())
    torch.manual_seed(7)
    assert torch.equal(one, net(rows()))
    net.eval()
    model.eval()
    assert_same(train_step(net, (rows(),)), train_step(model, (rows(),)), tolerance=0)


def test_dr2net_comes_near_the_network_as_beta_falls() -> None:
    model = chain(12)
    expected = model(rows())
    nets = [converted(model, mn.Dr2Net(beta=beta)) for beta in (1, 1 / 8, 1 / 64)]
    changes = [float((net(rows()) - expected).detach().norm()) for net in nets]
    assert changes[0] > 5 * changes[1] > 25 * changes[2] > 0


@rules
def test_no_read_a_block(coupling: Any) -> None:
    for depth in (4, 12):
        net = converted(chain(depth), coupling)
        train_step(net, (rows(),))  # without example inputs the first pass is looked at step by step
        for _ in range(2):
            with reads() as counts:
                net(rows()).square().mean().backward()
            drawn = 2 * (depth - 1) if coupling == "bdia" else 0  # on the host, whatever the device of the stream
            assert counts.total() - counts["aten::equal"] <= 2 + drawn, counts
