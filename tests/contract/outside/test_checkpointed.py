"""Streams whose blocks are recomputed from inputs that are kept: the same bits, and nothing wrong in silence."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.core.state.exact_state import ExactState
from tests.contract.outside.kept_blocks import converted
from tests.contract.reference import COUPLED, assert_same, loss_of, train_step
from tests.models import WIDTH, Case, Chain, ResidualMLP
from tests.tally import Tally


def rows(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1))


def chain(depth: int = 5) -> Chain:
    torch.manual_seed(0)
    return Chain([ResidualMLP() for _ in range(depth)])


def both(model: nn.Module, example: Any, **options: Any) -> tuple[nn.Module, nn.Module]:
    return tuple(mn.convert(model, example, backward=way, **options) for way in ("stored", "checkpointed"))


@pytest.mark.parametrize("arithmetic", ["exact", "float"])
@pytest.mark.parametrize("options", [{"gamma": 0}, {"gamma": 1 / 8}, {"gamma": 0.9}, *COUPLED], ids=str)
def test_gradients_equal_stored(case: Case, options: dict[str, Any], arithmetic: str) -> None:
    stored, checkpointed = both(case.model(), case.example(), arithmetic=arithmetic, **options)
    for _ in range(2):
        assert_same(train_step(checkpointed, case.example()), train_step(stored, case.example()), tolerance=0.0)


def test_no_state_is_rewound_and_none_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    undone: list[Any] = []
    made: list[weakref.ref[ExactState]] = []
    begin = ExactState.__init__

    def noted(state: ExactState, *args: Any, **kwargs: Any) -> None:
        made.append(weakref.ref(state))
        begin(state, *args, **kwargs)

    monkeypatch.setattr(ExactState, "undo", lambda *args, **kwargs: undone.append(args))
    monkeypatch.setattr(ExactState, "__init__", noted)
    net = mn.convert(chain(), rows(), backward="checkpointed")
    output = net(rows())
    gc.collect()
    assert made
    assert all(reference() is None for reference in made)
    loss_of(output).backward()
    assert not undone


def test_inputs_are_freed_as_backward_comes_by() -> None:
    x = torch.randn(64, WIDTH)
    net = mn.convert(chain(8), x, backward="checkpointed", gamma=0.9)
    loss_of(net(x)).backward()
    held = mn.measure_memory(lambda: net(x)).saved_bytes
    inputs = 8 * x.numel() * 4
    assert inputs <= held <= inputs + 4 * x.numel() * 4
    before, alive = _inputs(), []
    net.blocks[0].inner[0].register_full_backward_hook(lambda *_: alive.append(len(_inputs()) - len(before)))
    loss_of(net(x)).backward()
    assert alive[0] <= 4  # those of the first block and its surroundings, not of all eight


def _inputs() -> list[Tensor]:
    """All tensors of this process that may be an input of a block."""
    return [t for t in gc.get_objects() if type(t) is Tensor and t.shape == (64, WIDTH) and t.grad_fn is None]


def test_an_input_that_is_changed_is_refused() -> None:
    class Changing(Chain):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            first = x = self.blocks[0](x)
            for block in self.blocks[1:]:
                x = block(x)
            first.data  # noqa: B018
            with torch.no_grad():
                first.mul_(2)
            return self.head(x)

    torch.manual_seed(0)
    net = mn.convert(Changing([ResidualMLP() for _ in range(3)]), streams=["blocks"], backward="checkpointed")
    output = net(rows())
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.1.*changed in place"):
        loss_of(output).backward()


class Drawing(ResidualMLP):
    """Draws from a generator of its own."""

    generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x + torch.rand(x.shape, generator=self.generator))


def test_a_block_that_computes_otherwise_is_refused() -> None:
    torch.manual_seed(0)
    net = mn.convert(Chain([Drawing() for _ in range(3)]), rows(), backward="checkpointed")
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.2"):
        loss_of(net(rows())).backward()


@pytest.mark.parametrize("gamma", [1 / 8, 0.9])
def test_values_that_outgrow_the_scale(gamma: float) -> None:
    stored, checkpointed = both(chain(), rows(), gamma=gamma)
    for scale in (1.0, 1.0, 1e4, 1.0):
        assert_same(train_step(checkpointed, (rows(scale),)), train_step(stored, (rows(scale),)), tolerance=0.0)


def test_nan_reaches_the_loss_and_the_next_step_is_right() -> None:
    stored, checkpointed = both(chain(), rows())
    bad = rows()
    bad[0, 0] = float("nan")
    for x in (rows(), bad, rows()):
        for net in (checkpointed, stored):
            net.zero_grad()
        outcomes = [train_step(net, (x,)) for net in (checkpointed, stored)]
        assert torch.equal(outcomes[0].output.isnan(), outcomes[1].output.isnan())
    assert_same(*outcomes, tolerance=0.0)


def test_second_backward_and_second_derivatives() -> None:
    outcomes = []
    for net in both(chain(), rows()):
        x = rows().requires_grad_()
        loss = loss_of(net(x))
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        first.square().sum().backward(retain_graph=True)
        loss.backward()
        outcomes.append([x.grad, *(parameter.grad for parameter in net.parameters())])
    for expected, got in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_last_blocks_kept() -> None:
    expected = train_step(mn.convert(chain(), rows(), backward="stored"), (rows(),))
    for kept in (1, 3, 1 << 20):
        net = converted(chain(), rows(), kept, backward="checkpointed")
        assert_same(train_step(net, (rows(),)), expected, tolerance=0.0)


def test_inputs_of_modules_outside_streams_are_freed_as_backward_comes_by() -> None:
    """The comparisons of recomputes wait for the end of the backward; what the modules were given does not."""
    x = torch.randn(64, WIDTH)
    net = converted(chain(8), x, 0, backward="checkpointed", gamma=0)  # without a velocity there is no stream
    assert len(mn.describe(net)["recomputed"]) == 8
    before, alive = _inputs(), []
    net.blocks[0].inner[0].register_full_backward_hook(lambda *_: alive.append(len(_inputs()) - len(before)))
    loss_of(net(x)).backward()
    assert alive[0] <= 4


@pytest.mark.parametrize(
    ("dtype", "depth", "way"), [(torch.bfloat16, 2, "checkpointed"), (torch.float32, 2, "reversible")]
)
def test_short_streams_take_what_holds_less(dtype: torch.dtype, depth: int, way: str) -> None:
    model, x = chain(depth).to(dtype), rows().to(dtype)
    planned = mn.plan(model, x)
    assert planned.backwards == [way]
    assert ("checkpointed, as a state would hold more" in str(planned)) == (way == "checkpointed")
    held = {name: mn.plan(model, x, backward=name).saved_after for name in ("reversible", "checkpointed")}
    assert planned.saved_after == min(held.values())
    assert mn.describe(mn.convert(model, x))["streams"][0]["backward"] == way
    assert mn.plan(model, x, backward="reversible").backwards == ["reversible"]


class Alternating(ResidualMLP):
    """Adds something else to its output in each of its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = Tally([0])

    def forward(self, x: Tensor) -> Tensor:
        self.runs[0] += 1
        return super().forward(x) + self.runs[0]


def test_a_stream_tensor_that_differs_is_said_to_be_what_differs() -> None:
    """Not what a block returns beside it: it returns nothing there."""
    torch.manual_seed(0)
    net = mn.convert(Chain([Alternating() for _ in range(3)]), rows(), backward="checkpointed")
    with pytest.raises(mn.ReconstructionError, match="did not compute the same in backward as in forward"):
        loss_of(net(rows())).backward()
