"""Contract line 4: what blocks draw, they draw again."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.reference import assert_same, loss_of, pair, train_step
from tests.models import WIDTH, Case, Chain, ResidualMLP


def test_generators_end_where_ordinary_training_leaves_them(case: Case) -> None:
    model, example = case.model(), case.example()
    _, reversible = pair(case)
    plain = train_step(model, example)
    ours = train_step(reversible, example)
    assert torch.equal(ours.generator, plain.generator)
    torch.manual_seed(3)
    assert case.draws != torch.equal(ours.generator, torch.get_rng_state())


class Seeding(nn.Module):
    """Draws the same in each call, so that it leaves the generator where an earlier call of its kind has left it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return x + torch.tanh(self.layer(x)) * torch.rand(x.shape)


@pytest.mark.parametrize("backward", ["reversible", "checkpointed"])
def test_a_block_that_seeds_the_generator_does_so_in_forward_alone(backward: str) -> None:
    x = torch.randn(4, WIDTH)
    net = mn.convert(nn.Sequential(*[Seeding() for _ in range(3)]), x, backward=backward)
    for _ in range(3):
        loss = loss_of(net(x))
        torch.rand(2)
        state = torch.get_rng_state()
        loss.backward()
        assert torch.equal(torch.get_rng_state(), state)


class SeedingToo(Seeding):
    """Another class that seeds as the first one does."""


@pytest.mark.parametrize("backward", ["reversible", "checkpointed"])
@pytest.mark.parametrize("kinds", [(Seeding, Seeding), (Seeding, SeedingToo)], ids=["one class", "two classes"])
@pytest.mark.parametrize("seed", [1, 2])
def test_blocks_that_seed_alike_do_so_in_forward_alone(
    backward: str, kinds: tuple[type[nn.Module], ...], seed: int
) -> None:
    """The second block leaves the generator where it finds it; with seed 1, the first one leaves the user's seed."""
    x = torch.randn(4, WIDTH)
    net = mn.convert(nn.Sequential(*[kind() for kind in kinds]), x, backward=backward)
    torch.manual_seed(seed)
    for _ in range(2):
        loss = loss_of(net(x))
        torch.rand(2)
        state = torch.get_rng_state()
        loss.backward()
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("backward", ["reversible", "checkpointed"])
def test_blocks_that_draw_nothing_keep_no_state_beside_some_of_their_class_that_do(backward: str) -> None:
    """A state of the CPU's generator takes 5056 bytes."""

    def held(p: float) -> int:
        blocks = [nn.Sequential(ResidualMLP(), nn.Dropout(p)) for _ in range(6)]
        net = mn.convert(nn.Sequential(*blocks), x, streams=[""], backward=backward)
        net(x)
        net(x).sum().backward()
        return mn.measure_memory(lambda: net(x)).saved_bytes

    x = torch.randn(4, WIDTH)
    before, drawing, behind = held(0.0), held(0.5), held(0.0)
    assert drawing >= before + 6 * 5000
    assert behind == before


def test_randomness_is_replayed_in_eval_mode_too() -> None:
    class AlwaysDropping(ResidualMLP):
        def forward(self, x: Tensor) -> Tensor:
            return x + F.dropout(self.inner(x), 0.5, training=True)

    torch.manual_seed(0)
    chain = Chain([AlwaysDropping() for _ in range(3)]).eval()
    outcomes = [
        train_step(mn.convert(chain, streams=["blocks"], backward=backward), (torch.ones(5, WIDTH),))
        for backward in ("stored", "reversible")
    ]
    assert_same(outcomes[1], outcomes[0])
