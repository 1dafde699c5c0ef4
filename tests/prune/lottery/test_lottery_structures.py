"""Lotteries of channels and blocks: the same rounds, and tickets that become smaller networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentumnet.prune import BlockStructure, ChannelStructure, LotteryTicket, TrainingLog

IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(24) % 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)]
    return nn.Sequential(*stem, *[Block() for _ in range(4)], *head).double()


def train(model: nn.Module, log: TrainingLog) -> float:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for _ in range(log.start_step, 6):
        optimizer.zero_grad()
        F.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
        log.step()
    return float((model.eval()(IMAGES).argmax(1) == LABELS).double().mean())


@pytest.mark.parametrize("structure", ["channel", "block"])
@pytest.mark.parametrize("rewind_to", [0, 2])
def test_ticket_becomes_a_smaller_network_that_computes_the_same(structure: str, rewind_to: int) -> None:
    model = network()
    lottery = LotteryTicket(
        model,
        train,
        fraction=0.25,
        rounds=2,
        rewind_to=rewind_to,
        structure=structure,
        example_inputs=IMAGES[:2],
        controls=["reinitialised", "random mask"],
    )
    report = lottery.run()
    kept = [training.kept for training in report.trainings if training.arm == "ticket"]
    assert kept[0] > kept[1] > kept[2]
    maker = (ChannelStructure if structure == "channel" else BlockStructure)(model, IMAGES[:2])
    for number in (1, 2):
        arms = [training for training in report.trainings if training.round == number]
        assert {training.kept for training in arms} == {kept[number]}  # units of one size: the controls are as large
        for arm in ("ticket", "reinitialised", "random mask"):
            masked = lottery.ticket(number, arm=arm).eval()
            small = maker.shrink(masked, lottery.masks(number, arm=arm)).eval()
            torch.testing.assert_close(small(IMAGES), masked(IMAGES), rtol=1e-10, atol=1e-12)
            count = sum(parameter.numel() for parameter in small.parameters())
            total = sum(parameter.numel() for parameter in model.parameters())
            assert total - count == kept[0] - kept[number]


def test_random_mask_takes_other_channels() -> None:
    lottery = LotteryTicket(
        network(),
        train,
        fraction=0.5,
        rounds=1,
        structure="channel",
        example_inputs=IMAGES[:2],
        controls=["random mask"],
    )
    lottery.run()
    ticket, control = (lottery.masks(1, arm=arm) for arm in ("ticket", "random mask"))
    assert any(not torch.equal(ticket[name], control[name]) for name in ticket)


def test_skip_does_not_go_with_channels() -> None:
    with pytest.raises(ValueError, match="skip names weights, which structure='channel' does not choose by"):
        LotteryTicket(network(), train, structure="channel", example_inputs=IMAGES[:2], skip=["0"])
