"""Contract line 3: buffers change once in a step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization.fake_quantize import (
    FusedMovingAvgObsFakeQuantize,
    default_fused_per_channel_wt_fake_quant,
)

import momentumnet as mn
from tests.contract.reference import assert_same, loss_of, pair, relative_error, train_step
from tests.models import CASES, WIDTH, Case, Chain, ResidualMLP


def test_buffers_change_once_per_step_and_not_in_backward(case: Case) -> None:
    stored, reversible = pair(case)
    before = {name: buffer.clone() for name, buffer in reversible.named_buffers()}
    for net in (stored, reversible):
        for _ in range(2):
            _seeded(net, case)
    loss = loss_of(_seeded(reversible, case))
    loss_of(_seeded(stored, case))
    buffers = dict(reversible.named_buffers())
    after_forward = {name: buffer.clone() for name, buffer in buffers.items()}
    loss.backward()
    for name, buffer in reversible.named_buffers():
        assert buffer is buffers[name], name  # whoever holds the buffer's tensor goes on seeing it change
        assert torch.equal(buffer, after_forward[name]), name
        assert torch.equal(buffer, stored.get_buffer(name)), name
        if name.endswith("num_batches_tracked"):
            assert buffer == before[name] + 3
    changed = any(not torch.equal(before[name], buffer) for name, buffer in reversible.named_buffers())
    assert changed == case.buffers_change


def _seeded(net: nn.Module, case: Case) -> Tensor:
    torch.manual_seed(5)
    return net(*case.example())


def test_sync_batch_norm_changes_once_per_step() -> None:
    case = next(case for case in CASES if case.name == "basic_block")
    model = nn.SyncBatchNorm.convert_sync_batchnorm(case.model())
    outcomes = [
        train_step(mn.convert(model, case.example(), backward=backward), case.example())
        for backward in ("stored", "reversible")
    ]
    assert_same(outcomes[1], outcomes[0])
    tracked = [value for name, value in outcomes[1].buffers.items() if name.endswith("num_batches_tracked")]
    assert len(tracked) == 6
    assert all(value == 1 for value in tracked)


def test_running_statistics_of_hand_written_batch_norm_change_once() -> None:
    class OwnNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)
            self.register_buffer("mean", torch.zeros(WIDTH))
            self.register_buffer("var", torch.ones(WIDTH))
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x + F.batch_norm(self.linear(x), self.mean, self.var, training=True, momentum=0.5)

    torch.manual_seed(0)
    chain, x = Chain([OwnNorm(), OwnNorm()]), torch.randn(6, WIDTH)
    outcomes = [
        train_step(mn.convert(chain, streams=["blocks"], backward=backward), (x,))
        for backward in ("stored", "reversible")
    ]
    for name, buffer in outcomes[0].buffers.items():
        assert torch.equal(outcomes[1].buffers[name], buffer), name
    assert outcomes[1].buffers["blocks.0.calls"] == 1


def test_buffers_of_every_kind_end_with_the_bits_that_one_run_leaves() -> None:
    """Those of one type are put aside and back together: -0, NaN, and what is no number in the usual sense."""

    class Marking(ResidualMLP):
        def __init__(self) -> None:
            super().__init__()
            for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.complex64):
                for name in ("first", "second"):
                    self.register_buffer(f"{name}_{str(dtype)[6:]}", torch.tensor([-0.0, float("nan"), 1.0]).to(dtype))
            for name in ("first", "second"):
                self.register_buffer(f"{name}_bool", torch.tensor([True, False]))
                self.register_buffer(f"{name}_int", torch.zeros(2, dtype=torch.long))
            self.register_buffer("sparse", torch.eye(2).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            for name, buffer in self.named_buffers():
                if name.startswith("first") and buffer.dtype != torch.bool:
                    buffer[2:] += 1
                elif name.startswith("first"):
                    buffer.logical_not_()
            return x + self.inner(x)

    torch.manual_seed(0)
    chain, x = Chain([Marking(), Marking()]), torch.randn(5, WIDTH)
    stored, net = (mn.convert(chain, streams=["blocks"], backward=backward) for backward in ("stored", "reversible"))
    expected, found = (train_step(model, (x,)) for model in (stored, net))
    assert relative_error(found, expected) == 0
    for (name, buffer), other in zip(net.named_buffers(), stored.buffers(), strict=True):
        if buffer.layout == torch.strided:
            assert torch.equal(buffer.view(torch.uint8), other.view(torch.uint8)), name
        else:
            assert torch.equal(buffer.to_dense(), other.to_dense()), name


def test_buffer_replaced_by_assignment_is_seen_as_it_was() -> None:
    class Assigning(ResidualMLP):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            y = x + self.scale * self.inner(x)
            self.scale = self.scale * 0.5
            return y

    torch.manual_seed(0)
    chain = Chain([Assigning(), Assigning()])
    x = torch.randn(5, WIDTH)
    nets = [mn.convert(chain, streams=["blocks"], backward=backward) for backward in ("stored", "reversible")]
    for _ in range(2):
        outcomes = [train_step(net, (x,)) for net in nets]
    assert_same(outcomes[1], outcomes[0])
    assert outcomes[1].buffers["blocks.0.scale"] == 0.25


@pytest.mark.parametrize("backward", ["reversible", "checkpointed"])
@pytest.mark.parametrize("quantised", [True, False])
def test_observers_of_quantisation_aware_training_change_once(quantised: bool, backward: str) -> None:
    """Their fused kernel writes ranges, scales and zero points, and no in-place counter tells."""

    class Observed(ResidualMLP):
        def __init__(self) -> None:
            super().__init__()
            self.whole, self.channels = FusedMovingAvgObsFakeQuantize(), default_fused_per_channel_wt_fake_quant()
            self.whole.enable_fake_quant(quantised)

        def forward(self, x: Tensor) -> Tensor:
            first, _, second = self.inner
            return x + self.whole(F.linear(x, self.channels(first.weight))).tanh() @ second.weight

    torch.manual_seed(0)
    chain, x, outcomes = Chain([Observed(), Observed()]), torch.randn(5, WIDTH), []
    for way in ("stored", backward):
        net = mn.convert(chain, x, backward=way)
        outcomes.append([train_step(net, (factor * x,)) for factor in (1, 2, 3)])
    for expected, got in zip(*outcomes, strict=True):
        assert_same(got, expected)
    ranges = [value for name, value in outcomes[1][-1].buffers.items() if name.endswith("min_val")]
    assert all(value.isfinite().all() and value.numel() for value in ranges)
