from __future__ import annotations

import shutil
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from typing import NoReturn

import pytest
import torch
from torch._dynamo.utils import counters

from momentumnet.bench.measuring import methods as ways
from momentumnet.bench.measuring.compiled import compilation
from momentumnet.bench.measuring.training_step import TrainingStep, gradient_error, ratio, reason, step_rows
from momentumnet.bench.networks.measured import FAMILIES, NETWORKS, Network, family
from momentumnet.errors import ConversionError
from momentumnet.streams.blocks.converted import converted_blocks

KEPT = "momentum 1/2, others kept"
SMALL = [family(name, 5) for name in FAMILIES]


@pytest.mark.parametrize("network", SMALL, ids=FAMILIES)
def test_variants_compute_what_they_should(network: Network) -> None:
    torch.manual_seed(0)
    model, x = network.build(), network.example()
    variants = {
        name: build(model, x)
        for name, build in ways.methods(network, [Fraction(1, 2)], arithmetics=("exact", "float"), keeping=True).items()
    }
    names = ("stored", "checkpoint", "checkpoint √n", "momentum 1/2", "momentum 1/2 float", KEPT)
    assert tuple(variants) == names
    step = TrainingStep(x, None)
    for name in ("checkpoint", "checkpoint √n"):
        assert gradient_error(step, variants[name], model) == 0
    reference = ways.converter(Fraction(1, 2), "exact", backward="stored")(model, x)
    assert gradient_error(step, variants["momentum 1/2"], reference) == 0
    assert gradient_error(step, variants[KEPT], reference) == 0
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


def test_offloaded_activations_are_those_that_were_saved() -> None:
    network = family("resnet", 3)
    model, x = network.build(), network.example()
    offloaded = ways.methods(network, [], arithmetics=(), offloading=True)["offloaded"](model, x)
    assert gradient_error(TrainingStep(x, None), offloaded, model) == 0
    assert set(offloaded.parameters()) == set(model.parameters())


@pytest.fixture
def room_for_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    with compilation():
        yield


@pytest.mark.usefixtures("room_for_graphs")
def test_compiled_variants_compute_what_the_others_do() -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler, and this machine has none")
    torch.manual_seed(0)
    network, gamma = family("mlp", 4), Fraction(1, 2)
    model, x = network.build(), network.example()
    builds = ways.methods(network, [gamma], arithmetics=("exact",), compiling=True)
    names = {name for name in builds if "compiled" in name}
    blocks = {f"{name}, compiled blocks" for name in ("stored", "checkpoint", "checkpoint √n", "momentum 1/2")}
    assert names == blocks | {"compiled, half the activations"}
    step = TrainingStep(x, None)
    reference = ways.converter(gamma, "exact", backward="stored")(model, x)
    for name in sorted(names):
        variant = builds[name](model, x)
        counters.clear()
        error = gradient_error(step, variant, reference if name.startswith("momentum") else model)
        assert 0 < error < 1e-5, f"{name}: compiled code adds in another order"
        assert not counters["graph_break"]
        assert set(variant.parameters()) == set(model.parameters())
        assert all(block._compiled_call_impl is None for block in model.modules())  # the stored one stays as it is


@pytest.mark.usefixtures("room_for_graphs")
def test_all_shapes_of_a_resnet_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_block = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compile_block)
    network = NETWORKS["resnet50-64"]
    model = ways.compiled_twin(network.build(), network.containers)
    counters.clear()
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    # The first block of each of four stages, and the others of the stage.
    assert counters["stats"]["unique_graphs"] == 8
    assert not counters["graph_break"]
    model.requires_grad_(False)(torch.randn(1, 3, 64, 64))
    assert counters["stats"]["unique_graphs"] == 16


@pytest.mark.usefixtures("room_for_graphs")
def test_what_cannot_be_compiled_is_shown() -> None:
    def refuses(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> NoReturn:
        raise NotImplementedError("no such operation")

    network = family("mlp", 2)
    model = network.build()
    model.blocks[1].compile(backend=refuses)
    rows = step_rows({"compiled": model}, TrainingStep(network.example(), None), repeats=1)
    assert rows["compiled"]["error"].endswith("raised: NotImplementedError: no such operation")
    with pytest.raises(ZeroDivisionError):
        step_rows({"wrong": model}, lambda network: 1 / 0, repeats=1)  # type: ignore[arg-type,return-value]


def test_a_reason_is_never_empty() -> None:
    assert reason(ValueError("\nfirst\nsecond")) == "first"
    assert reason(ValueError()) == "ValueError"
