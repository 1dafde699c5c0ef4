"""How parents call their blocks, the restriction to named containers, and what is measured."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import momentumnet as mn
from momentumnet.errors import ConversionError
from momentumnet.streams import discover, find_streams
from tests.streams import nets
from tests.streams.nets import WIDTH, Block, Calls, chain, loop, modules, summary, tokens


def attributes(self, x):
    return self.third(self.second(self.first(x)))


def tuples(self, x, memory, mask):
    for layer in self.layers:
        x, _ = layer(memory=memory, mask=mask, hidden=x)
    return x


def as_dictionary(self, x):
    for layer in self.layers:
        x = layer(x)["hidden"]
    return x


def wrapped_in_dict(block, x, branch):
    return {"hidden": x + branch, "extra": branch}


PARENTS = {
    "sequential": (chain(3), tokens(), [("", 3)]),
    "loop over a slice": (Calls(loop, layers=modules(5)), {"x": tokens(), "start": 1, "stop": 4}, [("layers", 3)]),
    "attributes": (Calls(attributes, first=Block(), second=nets.Other(), third=Block()), tokens(), [("", 3)]),
    "keyword arguments and tuples": (
        Calls(tuples, layers=modules(3, nets.Attends)),
        (tokens(), tokens(), torch.zeros(5, 5)),
        [("layers", 3)],
    ),
    "dictionaries": (
        Calls(as_dictionary, layers=modules(3, lambda: Block(wrapped_in_dict))),
        tokens(),
        [("layers", 3)],
    ),
    "identity between blocks": (nn.Sequential(Block(), nn.Identity(), nn.Dropout(0.0), Block()), tokens(), [("", 2)]),
    "one module twice": (Calls(lambda self, x: self.core(self.core(x)), core=Block()), tokens(), [("", 2)]),
}


@pytest.mark.parametrize("case", PARENTS)
def test_calling_conventions(case):
    model, example_inputs, expected = PARENTS[case]
    assert summary(model, example_inputs) == [(path, length, "additive") for path, length in expected]


def test_blocks_are_named_in_call_order():
    model = Calls(lambda self, x: self.a(self.b(self.a(x))), a=Block(), b=Block())
    (stream,) = find_streams(model, tokens())
    assert stream.blocks == ("a", "b", "a")
    assert len(stream) == 3


def test_a_network_called_twice_is_one_stream():
    model = Calls(lambda self, x, y: self.tower(x) - self.tower(y), tower=chain(2))
    (stream,) = find_streams(model, (tokens(), 10 * tokens()))
    assert stream.blocks == ("tower.0", "tower.1")
    assert stream.magnitude > 10


def test_glue_between_blocks_splits_the_run():
    model = nn.Sequential(Block(), Block(), nn.Linear(WIDTH, WIDTH), Block(), Block())
    assert [stream.blocks for stream in find_streams(model, tokens())] == [("0", "1"), ("3", "4")]


def test_dropout_between_blocks_splits_the_run_though_it_does_nothing_in_eval_mode():
    model = nn.Sequential(Block(), Block(), nn.Dropout(0.1), Block(), Block())
    assert [stream.blocks for stream in find_streams(model, tokens())] == [("0", "1"), ("3", "4")]


def test_a_stream_that_the_parent_writes_into_between_blocks_is_split():
    def forward(self, x):
        x = self.b(self.a(x))
        x += 1.0
        return self.d(self.c(x))

    model = Calls(forward, a=Block(), b=Block(), c=Block(), d=Block())
    assert [stream.blocks for stream in find_streams(model, tokens())] == [("a", "b"), ("c", "d")]


def test_functional_dropout_between_blocks_splits_too():
    def forward(self, x):
        return self.b(F.dropout(self.a(x), 0.2, self.training))

    assert find_streams(Calls(forward, a=Block(), b=Block()), tokens()) == []


def test_a_frozen_network_is_seen():
    assert summary(chain(3).requires_grad_(False), tokens()) == [("", 3, "additive")]


def test_a_frozen_network_behind_integer_inputs_is_seen():
    model = nn.Sequential(nn.Embedding(7, WIDTH), chain(3)).requires_grad_(False)
    assert summary(model, torch.tensor([[1, 2, 3]])) == [("1", 3, "additive")]


def test_a_frozen_stream_that_lost_its_gradient_is_joined_again():
    model = Calls(lambda self, x: self.rest(self.start(x.detach())), start=chain(2), rest=chain(2))
    assert [len(stream) for stream in find_streams(model, tokens())] == [4]
    model = Calls(lambda self, x: self.rest(self.start(x).detach()), start=chain(2), rest=chain(2))
    assert [len(stream) for stream in find_streams(model, tokens())] == [2, 2]


def test_no_grad_sections_are_rejected_and_the_rest_is_found():
    def forward(self, x):
        with torch.no_grad():
            x = self.features(x)
        return self.head(x)

    model = Calls(forward, features=chain(3), head=chain(2))
    found = discover(model, tokens())
    assert [stream.path for stream in found.streams] == ["head"]
    assert any("no_grad" in rejection.reason for rejection in found.rejections)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_callers_gradient_mode_does_not_matter(context):
    model = chain(2)
    with context():
        assert summary(model, tokens()) == [("", 2, "additive")]


def test_streams_restricts_the_search():
    model = torchvision.models.resnet50(weights=None)
    image = torch.randn(1, 3, 64, 64)
    found = discover(model, image, streams=["layer3", "layer1"])
    assert [stream.path for stream in found.streams] == ["layer1", "layer3"]
    assert "layer2.0" in found.outside or "layer2" in found.outside
    left_out = [rejection.path for rejection in found.rejections if "does not name it" in rejection.reason]
    assert left_out == ["layer2", "layer4"]


def test_streams_cuts_a_run_that_crosses_containers():
    model = nn.Sequential(chain(2), chain(3))
    (stream,) = discover(model, tokens(), streams=["1"]).streams
    assert stream.blocks == ("1.0", "1.1", "1.2")
    assert len(discover(model, tokens(), streams=[""]).streams[0]) == 5


def test_streams_opens_a_run_that_would_be_kept_whole():
    model = Calls(loop, layers=modules(3, nets.Stage))
    (stream,) = discover(model, tokens(), streams=["layers.1"]).streams
    assert stream.blocks == ("layers.1.blocks.0", "layers.1.blocks.1")


def test_a_name_that_is_no_module_is_refused():
    with pytest.raises(ConversionError, match=r"'layer9', which is no module of ResNet.*layer4"):
        discover(torchvision.models.resnet18(weights=None), torch.randn(1, 3, 64, 64), streams=["layer9"])


def test_a_name_without_a_stream_is_refused_with_the_reasons():
    with pytest.raises(ConversionError) as caught:
        discover(torchvision.models.resnet18(weights=None), torch.randn(1, 3, 64, 64), streams=["layer1", "layer2"])
    message = str(caught.value)
    assert "'layer2' holds no residual stream" in message
    assert "Streams were found at: 'layer1'" in message
    assert "layer2.0: changes the shape" in message
    assert "layer2.1: a residual block" in message


@pytest.mark.parametrize("streams", ["layer1", [], [3]])
def test_streams_of_the_wrong_type_are_refused(streams):
    with pytest.raises(ConversionError, match="expected a non-empty sequence of container paths"):
        discover(chain(2), tokens(), streams=streams)


def kept_by_autograd(model: nn.Module, x: torch.Tensor, inside: tuple[str, ...]) -> tuple[int, int]:
    """Bytes saved in one forward, in all and while one of the modules ``inside`` runs, counted by address."""
    constants = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    alive, running, kept, kept_inside = [], [], {}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in constants:
            alive.append(storage)
            kept[storage.data_ptr()] = storage.nbytes()
            if running:
                kept_inside[storage.data_ptr()] = storage.nbytes()
        return tensor

    for name in inside:
        model.get_submodule(name).register_forward_pre_hook(lambda module, args: running.append(module))
        model.get_submodule(name).register_forward_hook(lambda module, args, output: running.clear())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(kept.values()), sum(kept_inside.values())


def test_saved_bytes_agree_with_an_independent_count():
    model = torchvision.models.resnet34(weights=None).eval()
    image = torch.randn(2, 3, 64, 64)
    found = discover(model, image)
    stream = found.streams[2]
    total, inside = kept_by_autograd(copy.deepcopy(model).train(), image, stream.blocks)  # norms keep their statistics
    assert stream.path == "layer3"
    assert (found.saved_bytes, stream.saved_bytes) == (total, inside)


def test_magnitude_shape_and_dtype():
    model, x = chain(3).double(), tokens().double()
    expected, value = [float(x.abs().max())], x
    for block in model:
        value = block(value)
        expected.append(float(value.detach().abs().max()))
    (stream,) = find_streams(model, x)
    assert stream.magnitude == max(expected)
    assert (stream.shape, stream.dtype) == ((2, 5, WIDTH), torch.float64)


def test_magnitude_leaves_out_what_is_not_finite():
    x = tokens()
    x[0, 0, 0], x[0, 0, 1], x[1, 0, 0] = float("inf"), float("nan"), -50.0
    (stream,) = find_streams(chain(2, lambda block, x, branch: x + 0.0 * branch), x)
    assert stream.magnitude == 50.0


def test_outside_names_the_maximal_modules_beside_the_streams():
    model = torchvision.models.resnet50(weights=None)
    found = discover(model, torch.randn(1, 3, 64, 64))
    assert found.outside == ("layer2.0", "layer3.0", "layer4.0")
    # The first block goes on with the chain of layers before it.
    assert found.chains == (("conv1", "bn1", "relu", "maxpool", "layer1.0"),)

    def forward(self, x):
        return self.tail(self.layers(self.stem(self.stem(x))))

    plain = nn.Sequential(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()), nn.Linear(WIDTH, WIDTH))
    model = Calls(forward, stem=plain, layers=chain(20), tail=nn.Linear(WIDTH, 1))
    assert discover(model, tokens()).outside == ("stem",)


@pytest.mark.parametrize("look", [mn.convert, mn.plan, mn.find_streams], ids=lambda look: look.__name__)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet18", "model is of type str; expected an nn.Module$"),
        (nn.Identity, r"model is of type type; expected an nn.Module; call Identity\(...\) to make one"),
    ],
    ids=["name", "class"],
)
def test_what_is_no_model_is_refused(look: Any, model: Any, message: str) -> None:
    with pytest.raises(mn.ConversionError, match=message):
        look(model, torch.zeros(2, 3))


@pytest.mark.parametrize("look", [mn.convert, mn.plan], ids=lambda look: look.__name__)
def test_a_backward_that_is_none_is_told_all_that_are(look: Any) -> None:
    with pytest.raises(ValueError, match="one of 'auto', 'reversible', 'checkpointed', 'stored', got 'reverse'"):
        look(nn.Identity(), torch.zeros(2, 3), backward="reverse")
