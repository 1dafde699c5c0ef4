"""What a lottery's tickets are compared with: newly drawn weights, and masks drawn by chance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from momentumnet.prune import LotteryTicket, TrainingLog
from tests.prune.lottery.lotteries import network, train


def test_reinitialised_control() -> None:
    calls: list[nn.Module] = []

    def draw(model: nn.Module) -> None:
        calls.append(model)
        for parameter in model.parameters():
            nn.init.uniform_(parameter, 1, 2)

    starts: list[int] = []

    def noted(model: nn.Module, log: TrainingLog) -> None:
        starts.append(log.start_step)
        train(model, log)

    lottery = LotteryTicket(network(), noted, rounds=2, rewind_to=2, controls=["reinitialised"], reinitialise=draw)
    lottery.run()
    for number in (1, 2):
        ticket, control = (lottery.ticket(number, arm=arm, trained=False) for arm in ("ticket", "reinitialised"))
        assert torch.equal(ticket[0].weight == 0, control[0].weight == 0)  # type: ignore[index]
        kept = control[0].weight[control[0].weight != 0]  # type: ignore[index]
        assert bool(((kept >= 1) & (kept <= 2)).all())
    assert len(calls) == 2
    again = [lottery.ticket(number, arm="reinitialised", trained=False)[2].bias for number in (1, 2)]  # type: ignore[index]
    assert not torch.equal(*again)
    assert starts == [0, 2, 0, 2, 0]  # new weights are trained in full, tickets from where they were rewound to


def test_default_reinitialisation_draws_all_anew() -> None:
    lottery = LotteryTicket(network(), train, rounds=1, controls=["reinitialised"])
    lottery.run()
    first = lottery.ticket(0, trained=False).state_dict()
    drawn = lottery.ticket(1, arm="reinitialised", trained=False).state_dict()
    for name in ("0.bias", "2.bias"):
        assert not bool((first[name] == drawn[name]).any())


def test_module_that_cannot_draw_its_weights() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    model = nn.Sequential(Own(), nn.Linear(6, 4)).double()
    with pytest.raises(ValueError, match=r"0 \(Own\) has parameters and no reset_parameters.*pass reinitialise="):
        LotteryTicket(model, train, rounds=1, controls=["reinitialised"]).run()


def test_random_mask_control() -> None:
    lottery = LotteryTicket(network(), train, fraction=0.5, rounds=2, rewind_to=1, controls=["random mask"])
    lottery.run()
    dense_start = lottery.ticket(1, trained=False)
    for number in (1, 2):
        ticket, control = (lottery.ticket(number, arm=arm, trained=False) for arm in ("ticket", "random mask"))
        for layer in (0, 2):
            kept, random_kept = (net[layer].weight != 0 for net in (ticket, control))  # type: ignore[index]
            assert int(kept.sum()) == int(random_kept.sum())
            assert not torch.equal(kept, random_kept)
        assert torch.equal(control[0].bias, dense_start[0].bias)  # type: ignore[index]
