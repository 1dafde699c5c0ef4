"""What a step takes outside of its units: caches, names, losses, layers' work space, gradients that come again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from transformers import GPT2Config, GPT2LMHeadModel, Wav2Vec2Config, Wav2Vec2ForCTC

import momentumnet as mn
from momentumnet.conversion.planning_options import gammas_within_budget
from momentumnet.planner.fit import measured_step, measured_steps
from momentumnet.planner.profiles.choice import Choice, Way
from momentumnet.planner.searching.methods import same_way
from momentumnet.planner.searching.options import Options
from momentumnet.planner.searching.simulate import held_between
from momentumnet.planner.step_plans import MeasuredStep
from momentumnet.streams.tracing.trace import call_with_example
from tests.models import ResidualMLP
from tests.planner.wide import chain, rows


def squared(output: Any) -> Tensor:
    found = [output] if isinstance(output, Tensor) else output
    return torch.stack([tensor.float().square().mean() for tensor in found]).sum()


def own_loss(output: Any) -> Tensor:
    loss: Tensor = output.loss
    return loss


def tokens() -> dict[str, Tensor]:
    found = torch.randint(100, (4, 32))
    return {"input_ids": found, "labels": found}


def decoder() -> nn.Module:
    """Its output holds the keys and values of all blocks that are not recomputed."""
    sizes = {"n_embd": 64, "n_layer": 6, "n_head": 4, "n_positions": 64, "vocab_size": 100}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def autoencoder() -> nn.Module:
    """Its output is what its last part saves, or does not where it is recomputed."""
    return nn.Sequential(
        nn.Sequential(nn.Linear(400, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU()),
        nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 400), nn.Sigmoid()),
    )


class Padded(nn.Module):
    """Convolutions of large kernels that belong to no part."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, self.first = nn.ReflectionPad2d(3), nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()) for _ in range(3))
        self.last = nn.Conv2d(8, 3, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.last(self.pad(x)).tanh()
        return output


class Twice(nn.Module):
    """Two calls of one encoder, whose large layer's gradient waits for the other one."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1)]
        self.encoder = nn.Sequential(*layers, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 64))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(first), self.encoder(second)


class Kept(nn.Module):
    """A local variable lives as long as the forward does: nobody saves it, and it is as large as all else."""

    def __init__(self) -> None:
        super().__init__()
        self.spread, self.mix = nn.Linear(16, 512).requires_grad_(False), nn.Linear(512, 32)
        self.blocks = nn.ModuleList(ResidualMLP(32, 64) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        wide = self.spread(x)
        h = self.mix(wide + 1)
        for block in self.blocks:
            h = block(h)
        return h


class Joined(nn.Module):
    """What stands behind the stream takes its output joined with another tensor, which nothing gives again."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Linear(32, 32), nn.Tanh())
        self.blocks = nn.ModuleList(ResidualMLP(32, 64) for _ in range(6))
        self.behind = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 32), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        h = before = self.before(x)
        for block in self.blocks:
            h = block(h)
        output: Tensor = self.behind(torch.cat([h, before], dim=1))
        return output


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], Callable[[Any], Tensor]]] = {
    "key-value cache": (decoder, tokens, own_loss),
    "output of a recomputed part": (autoencoder, lambda: torch.rand(512, 400), squared),
    "work space of layers": (Padded, lambda: torch.randn(4, 3, 48, 48), squared),
    "gradients that come again": (Twice, lambda: (torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)), squared),
    "a local variable": (Kept, lambda: torch.randn(512, 16), squared),
    "a stream's output, joined": (Joined, lambda: torch.randn(1024, 32), squared),
}


def measured_peak(net: nn.Module, example: Any, loss: Callable[[Any], Tensor], *, autocast: bool) -> int:
    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = call_with_example(net, example)
            total = loss(output)
        total.backward()

    step()
    net.zero_grad(set_to_none=True)
    return mn.measure_memory(step).peak_bytes


def steps_of(model: nn.Module, example: Any, loss: Callable[[Any], Tensor], *, autocast: bool) -> list[MeasuredStep]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return measured_steps(model, example, gammas=gammas_within_budget(None), loss=loss)


@pytest.mark.parametrize("name", CASES)
def test_peaks_are_predicted_by_themselves(name: str) -> None:
    """Without a trial, which would hide what the prediction is off."""
    torch.manual_seed(0)
    build, make_example, loss = CASES[name]
    model, example = build().train(), make_example()
    for step in steps_of(model, example, loss, autocast=False):
        least = step.plan(None)
        between = int((least.peak + least.stored_peak) / 2 / 0.95)
        for plan in (least, step.plan(max(between, int(least.peak / 0.94))), step.plan(1 << 40)):
            found = measured_peak(mn.convert(model, plan=plan), example, loss, autocast=False)
            assert plan.peak == pytest.approx(found, rel=0.02), (step.gamma, plan.budget)


def test_what_the_model_was_given_is_held_by_its_caller() -> None:
    """Also where autocast saves its cast alone: the example was counted as an input that a recompute keeps."""
    torch.manual_seed(0)
    model, x = autoencoder().train(), torch.rand(512, 400)
    [step] = steps_of(model, x, squared, autocast=True)
    least = step.plan(None)
    found = measured_peak(mn.convert(model, plan=least), x, squared, autocast=True)
    assert least.peak == pytest.approx(found, rel=0.02)


def test_a_model_that_asks_for_a_gradient_of_its_input() -> None:
    """As encoders of speech do: in a trace the input has one, and is no leaf."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    more = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    config = Wav2Vec2Config(vocab_size=20, mask_time_prob=0.0, layerdrop=0.0, **sizes, **more)
    model, example = Wav2Vec2ForCTC(config).train(), {"input_values": torch.randn(2, 4000)}
    example["labels"] = torch.randint(1, 20, (2, 3))
    plan = mn.plan(model, example, gamma=0, budget="least", loss=own_loss)
    assert plan.peak == pytest.approx(plan.measured_peak, rel=0.02)


class FrozenFront(nn.Module):
    """Parts that are not trained, a stream of which the first blocks are not, and a head."""

    def __init__(self) -> None:
        super().__init__()
        parts = (nn.Sequential(nn.Linear(32 + 8 * n, 40 + 8 * n), nn.Tanh()) for n in range(4))
        self.parts = nn.Sequential(*parts).requires_grad_(False)
        self.blocks = nn.ModuleList(ResidualMLP(64, 32).requires_grad_(n > 1) for n in range(4))
        self.head = nn.Sequential(nn.Linear(64, 8), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts(x)
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.head(x)
        return output


def test_parts_that_keep_nothing_are_not_recomputed() -> None:
    """Frozen ones: their inputs were counted as kept, and what is never needed again was wrapped to be recomputed."""
    torch.manual_seed(0)
    model, x = FrozenFront().train(), torch.randn(512, 32)
    for step in steps_of(model, x, squared, autocast=False):
        plan = step.plan(1 << 40)
        assert {unit.way for unit in plan.units} == {"stored"}
        if not step.gamma:
            found = measured_peak(mn.convert(model, plan=plan), x, squared, autocast=False)
            assert plan.peak == pytest.approx(found, rel=0.02)


def test_a_frozen_part_that_runs_again_takes_its_time() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32 + 8 * n, 40 + 8 * n), nn.Tanh()) for n in range(3)))
    [step] = steps_of(model.train(), torch.randn(512, 32), squared, autocast=False)
    profile = step.options.profile
    profile = replace(
        profile,
        units=tuple(
            replace(unit, cost=replace(unit.cost, forward_seconds=1.0, has_backward=number > 0))
            for number, unit in enumerate(profile.units)
        ),
    )
    assert Options(profile).seconds(Choice(0, 2, Way.CHECKPOINTED)) == 2.0
    assert Options(profile).seconds(Choice(0, 1, Way.CHECKPOINTED)) == 0.0


def test_blocks_of_a_stream_that_are_frozen_in_front_keep_no_input() -> None:
    model = chain()
    for part in (model.stem, *model.blocks[:3]):
        part.requires_grad_(False)
    step = measured_step(model, rows(), gamma=Fraction(1, 8))
    choices = same_way(step.options.profile)["checkpoint"]
    net = mn.convert(model, plan=step._with(choices, None, 1 << 40))
    net(rows()).sum().backward()
    net.zero_grad()
    found = mn.measure_memory(lambda: net(rows()).sum().backward())
    assert held_between(step.options.profile, choices) == pytest.approx(found.saved_bytes, rel=0.05)


def test_the_gradient_of_a_transposed_output_comes_in_order() -> None:
    """An attention layer's output is transposed, and so is a block's; what is behind it hands on no such gradient."""
    torch.manual_seed(0)
    model, x = VisionTransformer(32, 8, 6, 4, 64, 128, num_classes=10).train(), torch.randn(16, 3, 32, 32)
    plan = measured_step(model, x, gamma=Fraction(0)).plan(None)
    found = measured_peak(mn.convert(model, plan=plan), x, torch.sum, autocast=False)
    assert plan.peak == pytest.approx(found, rel=0.005)


def test_what_a_part_is_given_stays_while_it_is_recomputed() -> None:
    """Under autocast layers keep a copy of another type, and nobody keeps what is handed from one part to the next."""
    torch.manual_seed(0)
    model, x = nn.Sequential(*(ResidualMLP(32) for _ in range(20))), torch.randn(1024, 32)
    with torch.autocast("cpu", torch.bfloat16):
        step = measured_step(model, x, gamma=Fraction(0))
        together = [Choice(at, at + 4, Way.CHECKPOINTED) for at in range(0, 20, 4)]
        plan = step._with(together, None, 1)
    net = mn.convert(model, plan=plan)

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output = net(x)
            loss = squared(output)
        loss.backward()

    train()
    net.zero_grad()
    assert plan.peak == pytest.approx(mn.measure_memory(train).peak_bytes, rel=0.06)
