from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from momentumnet.errors import ConversionError
from momentumnet.streams import discover, find_streams
from momentumnet.streams.trace import call_with_example
from tests.streams import nets
from tests.streams.nets import WIDTH, Block, Calls, chain


def tokens(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 5, WIDTH)


def summary(model: nn.Module, example_inputs: object) -> list[tuple[str, int, str]]:
    return [(stream.path, len(stream), stream.kind) for stream in find_streams(model, example_inputs)]


def reasons(model: nn.Module, example_inputs: object) -> str:
    found = discover(model, example_inputs)
    assert found.streams == ()
    return "\n".join(f"{rejection.blocks}: {rejection.reason}" for rejection in found.rejections)


# --- real networks: lengths known from their definitions, and a survey that traced them independently -------------

IMAGE_MODELS = {
    "resnet18": (64, "postact", [("layer1", 2)]),
    "resnet50": (64, "postact", [("layer1", 2), ("layer2", 3), ("layer3", 5), ("layer4", 2)]),
    "convnext_tiny": (64, "additive", [("features.1", 3), ("features.3", 3), ("features.5", 9), ("features.7", 3)]),
    "efficientnet_v2_s": (64, "additive", [(f"features.{i + 1}", n) for i, n in enumerate((2, 3, 3, 5, 8, 14))]),
    "mobilenet_v3_small": (64, "additive", [("features", 2), ("features", 2)]),
    "regnet_y_400mf": (64, "postact", [(f"trunk_output.block{i}", n) for i, n in ((2, 2), (3, 5), (4, 5))]),
    "swin_v2_t": (64, "additive", [("features.1", 2), ("features.3", 2), ("features.5", 6), ("features.7", 2)]),
    "shufflenet_v2_x0_5": (64, "concat", [("stage2", 3), ("stage3", 7), ("stage4", 3)]),
    # The window and grid attention that follow each stage's strided convolution pass their stream on to the next
    # layer, which is another container.
    "maxvit_t": (224, "additive", [(f"blocks.{i}.layers", n) for i, n in enumerate((5, 5, 6, 5))]),
    "densenet121": (64, "", []),
    "vgg11_bn": (64, "", []),
}


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_torchvision_classification(name):
    size, kind, expected = IMAGE_MODELS[name]
    model = torchvision.models.get_model(name, weights=None)
    found = find_streams(model, torch.randn(1, 3, size, size))
    assert [(stream.path, len(stream)) for stream in found] == expected
    assert {stream.kind for stream in found} <= {kind}


def test_torchvision_segmentation_and_detection_backbones():
    segmentation = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)
    lengths = [(f"backbone.layer{i}", n, "postact") for i, n in ((1, 2), (2, 3), (3, 5), (4, 2))]
    assert summary(segmentation, torch.randn(1, 3, 64, 64)) == lengths

    detection = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    # mobilenet_v3_large: 40, 80 and 160 channels; IntermediateLayerGetter calls the blocks one by one.
    expected = [("backbone.body", length, "additive") for length in (2, 3, 2)]
    assert summary(detection, [torch.rand(3, 128, 128)]) == expected


def test_torchvision_raft_calls_its_update_block_several_times():
    model = torchvision.models.optical_flow.raft_small(weights=None)
    images = torch.randn(2, 1, 3, 128, 128)
    found = find_streams(model, {"image1": images[0], "image2": images[1], "num_flow_updates": 3})
    repeated = [stream for stream in found if stream.path == ""]
    assert [(stream.blocks, stream.kind) for stream in repeated] == [(("update_block",) * 3, "gated")]
    assert [(stream.path, len(stream)) for stream in found if stream.path] == [
        ("feature_encoder.layer1", 2),
        ("context_encoder.layer1", 2),
    ]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_torch_transformer(batch_first, norm_first):
    model = nn.Transformer(8, 2, 3, 2, 16, batch_first=batch_first, norm_first=norm_first)
    source, target = torch.randn(4, 4, 8), torch.randn(4, 4, 8)
    padding = torch.zeros(4, 4, dtype=torch.bool)
    padding[:, -1] = True
    arguments = {
        "src": source,
        "tgt": target,
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(4),
        "src_key_padding_mask": padding,
        "memory_key_padding_mask": padding,
    }
    kind = "additive" if norm_first else "postact"
    assert summary(model, arguments) == [("encoder.layers", 3, kind), ("decoder.layers", 2, kind)]
    assert summary(model, (source, target)) == [("encoder.layers", 3, kind), ("decoder.layers", 2, kind)]


@pytest.mark.parametrize("enable_nested_tensor", [False, True])
def test_frozen_transformer_encoder_is_not_taken_by_the_fast_path(enable_nested_tensor):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=enable_nested_tensor).requires_grad_(False).eval()
    padding = torch.tensor([[False, False, True], [False, True, True]])
    found = discover(model, {"src": torch.randn(2, 3, 8), "src_key_padding_mask": padding})
    assert [(stream.path, len(stream), stream.kind) for stream in found.streams] == [("layers", 3, "postact")]


def test_transformer_decoder_takes_the_memory_as_a_side_input():
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 4)
    assert summary(model, (torch.randn(3, 2, 8), torch.randn(5, 2, 8))) == [("layers", 4, "postact")]


# --- how parents call their blocks ------------------------------------------------------------------------------


def loop(self, x, *, start=0, stop=None):
    for block in self.layers[start:stop]:
        x = block(x)
    return x


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


def modules(count: int, build=Block) -> nn.ModuleList:
    return nn.ModuleList(build() for _ in range(count))


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


# --- which calls are chosen -----------------------------------------------------------------------------------------


def test_plain_containers_are_opened_and_runs_cross_them():
    model = nn.Sequential(chain(2), nn.Sequential(chain(1), chain(2)))
    (stream,) = find_streams(model, tokens())
    assert stream.blocks == ("0.0", "0.1", "1.0", "1.1.0", "1.1.1")  # opening "1.0" gives no further link
    assert stream.path == ""


def test_the_outermost_run_of_one_class_is_kept():
    model = Calls(loop, layers=modules(3, nets.Stage))
    assert summary(model, tokens()) == [("layers", 3, "additive")]
    alone = Calls(loop, layers=modules(1, nets.Stage))
    assert summary(alone, tokens()) == [("layers.0.blocks", 2, "additive")]


def test_runs_of_mixed_classes_are_opened_where_that_gives_more_links():
    model = nn.Sequential(Block(), nets.Stage())
    (stream,) = find_streams(model, tokens())
    assert stream.blocks == ("0", "1.blocks.0", "1.blocks.1")


# --- kinds of skip, and decoys -----------------------------------------------------------------------------------


def rotated(block, x, branch):
    return torch.cat(((x + branch)[..., 2:], (x + branch)[..., :2]), dim=-1)


def in_place_on_a_view(block, x, branch):
    branch = branch.clone()
    branch[..., :4] += x[..., :4]
    return branch


KINDS = {
    "additive": (
        lambda block, x, branch: branch.add_(x),
        lambda block, x, branch: torch.addmm(x.flatten(0, 1), branch.flatten(0, 1), block.gate.weight).view_as(x),
        lambda block, x, branch: (x.transpose(0, 1) + branch.transpose(0, 1)).transpose(0, 1),
        lambda block, x, branch: x - block.norm(block.gate(x)),
        lambda block, x, branch: torch.addcmul(x, block.scale, branch),
    ),
    "additive-scaled": (lambda block, x, branch: block.scale * x + branch,),
    "additive-rearranged": (rotated, in_place_on_a_view),
    "postact": (
        lambda block, x, branch: torch.relu(x + branch),
        lambda block, x, branch: block.norm(x + branch),
        lambda block, x, branch: torch.relu(x) + branch,
    ),
    "gated": (
        lambda block, x, branch: (1 - block.gate(x).sigmoid()) * x + block.gate(x).sigmoid() * branch,
        lambda block, x, branch: torch.lerp(x, branch, block.gate(x).sigmoid()),
        lambda block, x, branch: (x + branch) * block.gate(x + branch).sigmoid(),
    ),
}


@pytest.mark.parametrize(("kind", "combine"), [(kind, combine) for kind in KINDS for combine in KINDS[kind]])
def test_kinds_of_skip(kind, combine):
    assert summary(chain(3, combine), tokens()) == [("", 3, kind)]


def test_concatenated_halves_are_a_stream_of_their_own():
    model = nn.Sequential(nets.ConcatHalves(), nets.ConcatHalves(), Block(), Block())
    assert summary(model, tokens()) == [("", 2, "concat"), ("", 2, "additive")]


@pytest.mark.parametrize(
    "build",
    [
        nets.Normalise,
        nets.TanhGelu,
        nets.Squeeze,
        nets.ConcatProject,
        nn.Identity,
        lambda: nn.Linear(WIDTH, WIDTH),
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU()),
        lambda: nn.Sequential(Block(), nn.Linear(WIDTH, WIDTH)),
        lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8).self_attn.out_proj,
    ],
)
def test_decoys(build):
    model = nn.Sequential(*(build() for _ in range(4)))
    assert find_streams(model, tokens()) == []


def test_convolutions_that_keep_the_shape_are_no_blocks():
    def layer():
        return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))

    text = reasons(nn.Sequential(layer(), layer()), torch.randn(1, 4, 6, 6))
    assert "('0', '1'): no skip connection inside" in text


def test_a_skip_from_a_side_input_is_no_skip():
    def forward(self, x, memory):
        return self.b(self.a(x, memory), memory)

    model = Calls(forward, a=nets.FromMemory(), b=nets.FromMemory())
    assert "no skip connection inside" in reasons(model, (tokens(), tokens()))


def test_the_walk_is_linear_in_the_size_of_the_graph():
    assert summary(nn.Sequential(nets.DeepSum(), nets.DeepSum()), tokens()) == [("", 2, "additive")]


# --- gradients that are missing -------------------------------------------------------------------------------------


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


# --- rejections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [lambda: nets.PreActivation(inplace=True), nets.AddsIntoInput])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_block_that_overwrites_its_input_is_refused(build, frozen):
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *(build() for _ in range(3))).requires_grad_(not frozen)
    found = discover(model, tokens())
    assert found.streams == ()
    (rejection,) = [rejection for rejection in found.rejections if "overwrites" in rejection.reason]
    assert rejection.blocks == ("1", "2", "3")
    assert "inplace=False" in rejection.reason
    assert summary(nn.Sequential(*(nets.PreActivation(inplace=False) for _ in range(3))), tokens())


def test_a_skip_written_in_the_parent_is_explained():
    def forward(self, x):
        for attention, mlp in zip(self.attention, self.mlp, strict=True):
            x = x + self.drop(attention(self.norm(x)))
            x = x + mlp(x)
        return x

    def build():
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())

    model = Calls(
        forward, attention=modules(2, build), mlp=modules(2, build), norm=nn.LayerNorm(WIDTH), drop=nn.Dropout(0.1)
    )
    found = discover(model, tokens())
    assert found.streams == ()
    (rejection,) = [rejection for rejection in found.rejections if "written in" in rejection.reason]
    assert rejection.blocks == ("drop", "mlp.0", "mlp.1")
    assert "Calls.forward" in rejection.reason
    assert "class Residual" in rejection.reason


def test_a_block_that_changes_the_shape_and_a_block_alone_are_explained():
    model = torchvision.models.resnet18(weights=None)
    found = {rejection.blocks: rejection.reason for rejection in discover(model, torch.randn(1, 3, 64, 64)).rejections}
    assert found["layer2.0",] == "changes the shape from (1, 64, 16, 16) to (1, 128, 8, 8)"
    assert "a stream needs two" in found["layer2.1",]


# --- restriction to named containers --------------------------------------------------------------------------------


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


# --- what is measured ------------------------------------------------------------------------------------------------


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
    total, inside = kept_by_autograd(copy.deepcopy(model), image, stream.blocks)
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
    expected = tuple(f"layer{i}.0" for i in (1, 2, 3, 4))
    assert discover(model, torch.randn(1, 3, 64, 64)).outside == expected

    def forward(self, x):
        return self.tail(self.layers(self.stem(self.stem(x))))

    plain = nn.Sequential(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()), nn.Linear(WIDTH, WIDTH))
    model = Calls(forward, stem=plain, layers=chain(2), tail=nn.Linear(WIDTH, 1))
    assert discover(model, tokens()).outside == ("stem",)


# --- the model is left as it was found ------------------------------------------------------------------------------


def state_of(model: nn.Module) -> dict[str, object]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {
        "training": [module.training for module in model.modules()],
        "hooks": [len(getattr(module, name)) for module in model.modules() for name in hooks],
        "tensors": [(id(tensor), tensor.requires_grad) for tensor in [*model.parameters(), *model.buffers()]],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "values": [tensor.detach().clone().tolist() for tensor in [*model.parameters(), *model.buffers()]],
    }


def test_the_model_is_left_as_found():
    model = nn.Sequential(nets.Counting(), nets.Counting(), nn.BatchNorm1d(5), nn.Dropout())
    model.train()
    model[0].eval()
    model[1].linear.weight.requires_grad_(False)
    model[0].register_forward_hook(lambda module, args, output: None)
    x = tokens().requires_grad_()
    before, generator, values = state_of(model), torch.get_rng_state(), x.detach().clone()
    assert len(find_streams(model, x)) == 1
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(x, values)
    assert x.requires_grad
    assert x.grad is None


def test_the_model_is_left_as_found_after_an_exception():
    def forward(self, x):
        self.layers(x)
        raise RuntimeError("from the forward")

    model = Calls(forward, layers=nn.Sequential(nets.Counting(), nets.Counting()))
    x = tokens()
    before, generator = state_of(model), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="from the forward"):
        find_streams(model, x)
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), generator)


def test_an_overridden_train_method_is_not_called():
    class Merging(Block):
        def train(self, mode=True):
            raise AssertionError("train has side effects here")

    model = Calls(loop, layers=modules(2, Merging))
    assert len(find_streams(model, tokens())) == 1
    assert model.training


def test_the_callers_tensors_are_not_written_to():
    model = Calls(lambda self, x, y: self.layers(x.mul_(2.0) + y["shift"].add_(1.0)), layers=chain(2))
    x, shift = tokens(), tokens()
    copies = x.clone(), shift.clone()
    assert len(find_streams(model, (x, {"shift": shift}))) == 1
    assert torch.equal(x, copies[0])
    assert torch.equal(shift, copies[1])
    assert not x.requires_grad


def test_an_exception_that_the_model_catches_does_not_confuse_the_trace():
    def fails(self, x):
        raise ValueError("no")

    def forward(self, x):
        try:
            self.fragile(x)
        except ValueError:
            return self.layers(x)
        raise AssertionError("expected the failure")

    model = Calls(forward, fragile=Calls(lambda self, x: self.inner(x), inner=Calls(fails)), layers=chain(2))
    assert summary(model, tokens()) == [("layers", 2, "additive")]


def test_everything_is_dropped_at_the_end():
    references = []
    model = Calls(loop, layers=modules(3))
    model.layers[1].register_forward_hook(lambda module, args, output: references.append(weakref.ref(output)))
    gc.disable()
    try:
        found = discover(model, tokens())
        assert len(found.streams) == 1
        assert [reference() for reference in references] == [None]
    finally:
        gc.enable()


def test_a_compiled_block_is_looked_into():
    model = nn.Sequential(*(torch.compile(Block(), backend="eager") for _ in range(3)))
    assert summary(model, tokens()) == [("", 3, "additive")]


# --- example inputs --------------------------------------------------------------------------------------------------


def test_call_with_example():
    def forward(self, *args, **kwargs):
        return args, kwargs

    model, x = Calls(forward), torch.zeros(1)
    assert call_with_example(model, x) == ((x,), {})
    assert call_with_example(model, [x, x]) == (([x, x],), {})
    assert call_with_example(model, (x, None)) == ((x, None), {})
    assert call_with_example(model, {"x": x}) == ((), {"x": x})
    with pytest.raises(ConversionError, match="of type str; expected a tensor"):
        call_with_example(model, "image")


def test_functional_dropout_between_blocks_splits_too():
    def forward(self, x):
        return self.b(F.dropout(self.a(x), 0.2, self.training))

    assert find_streams(Calls(forward, a=Block(), b=Block()), tokens()) == []
