from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from momentumnet.bench import methods as ways
from momentumnet.bench.networks import FAMILIES, NETWORKS, Network, family
from momentumnet.bench.training_step import TrainingStep, gradient_error, ratio, step_rows
from momentumnet.convert import plan
from momentumnet.errors import ConversionError
from momentumnet.memory import measure_memory
from momentumnet.streams.converted import converted_blocks

KEPT, LAST = "momentum 1/2, others kept", "momentum 1/2, last kept"
SMALL = [family(name, 5) for name in FAMILIES]


@pytest.mark.parametrize("network", SMALL, ids=FAMILIES)
def test_variants_compute_what_they_should(network: Network) -> None:
    torch.manual_seed(0)
    model, x = network.build(), network.example()
    variants = {
        name: build(model, x)
        for name, build in ways.methods(network, [Fraction(1, 2)], arithmetics=("exact", "float"), keeping=True).items()
    }
    names = ("stored", "checkpoint", "checkpoint √n", "momentum 1/2", "momentum 1/2 float", KEPT, LAST)
    assert tuple(variants) == names
    step = TrainingStep(x, None)
    for name in ("checkpoint", "checkpoint √n"):
        assert gradient_error(step, variants[name], model) == 0
    reference = ways.converter(Fraction(1, 2), "exact", backward="stored")(model, x)
    assert gradient_error(step, variants["momentum 1/2"], reference) == 0
    assert gradient_error(step, variants[KEPT], reference) == 0
    assert gradient_error(step, variants[LAST], reference) == 0
    assert gradient_error(step, variants["momentum 1/2"], model) > 0.01
    reference = ways.converter(Fraction(1, 2), "float", backward="stored")(model, x)
    assert 0 < gradient_error(step, variants["momentum 1/2 float"], reference) < 1e-2
    parameters = set(model.parameters())
    assert all(set(variant.parameters()) == parameters for variant in variants.values())


def test_others_are_kept_or_recomputed() -> None:
    network = NETWORKS["resnet50-64"]
    model, x = network.build(), network.example()
    variants = ways.methods(network, [Fraction(1, 2)], arithmetics=("exact",), keeping=True)
    kept, recomputed = (
        sum(True for _ in converted_blocks(variants[name](model, x))) for name in (KEPT, "momentum 1/2")
    )
    assert kept == 2 + 3 + 5 + 2
    assert recomputed == kept + 4 + 4  # the first blocks, and the stem's layers


def test_last_blocks_are_kept_in_what_checkpointing_holds() -> None:
    network = NETWORKS["resnet50-64"]
    model, x = network.build(), network.example()
    variants = ways.methods(network, [Fraction(1, 2)], arithmetics=("exact",), keeping=True)
    nets = [variants[name](model, x) for name in ("momentum 1/2", LAST, "checkpoint")]
    held = [measure_memory(lambda net=net: net(x)).saved_bytes for net in nets]
    assert held[0] < held[1] <= held[2]
    stages = plan(model, x, others="checkpoint").discovery.timeline
    assert held[2] - held[1] < max(stage.saving + stage.returned for stage in stages), "one more would fit"


def test_segments_cover_all_containers_of_a_resnet() -> None:
    network = NETWORKS["resnet50-64"]
    model = network.build()
    segments = ways.checkpointed(model, network.containers, every=None).get_submodule("layer1")
    assert [len(segment.blocks) for segment in segments] == [4, 4, 4, 4]
    assert len(ways.checkpointed(model, network.containers, every=1).get_submodule("layer1")) == 16


def test_a_method_that_fails_is_shown_and_not_timed() -> None:
    network = family("mlp", 2)
    step = TrainingStep(network.example(), None)

    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ConversionError("it broke\nin two lines")

    rows = step_rows({"stored": network.build(), "broken": Broken(), "absent": "no such thing"}, step, repeats=1)
    assert rows["stored"]["step_seconds"] > 0
    assert rows["broken"]["error"] == "it broke"
    assert rows["absent"]["error"] == "no such thing"
    assert rows["broken"]["step_seconds"] is None
    assert ratio(rows, "stored", "step_seconds", "stored") == 1
    assert ratio(rows, "broken", "step_seconds", "stored") is None
    assert ratio(rows, "stored", "step_seconds", "nowhere") is None


def test_gradients_leave_the_running_statistics_alone() -> None:
    network = family("resnet", 2)
    model = network.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = TrainingStep(network.example(), None)
    assert torch.equal(step.gradient(model), step.gradient(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
