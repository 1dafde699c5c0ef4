"""What the parent of double-stream blocks may do between them, and what becomes of a converted network of such."""

from __future__ import annotations

import copy
import gc
import io
import json
import weakref
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.double_streams import GAMMA, Double, Net, Pair, assert_same_gradients, both, gradients, positional


def stored() -> dict[str, Tensor]:
    return gradients(mn.convert(Net(), both(), gamma=GAMMA, backward="stored"))


def description(**options: Any) -> dict[str, Any]:
    return json.loads(json.dumps(mn.describe(mn.convert(Net(), both(), **{"gamma": GAMMA, **options}))))


@pytest.mark.parametrize(
    "between",
    [lambda a, b: (a + 1, b), lambda a, b: (a, b.clone()), lambda a, b: (a + 1, b + 1)],
    ids=["first", "second", "both"],
)
def test_a_tensor_that_something_replaces(between: Any) -> None:
    net = mn.convert(Net(between=between), like=description())
    with pytest.raises(mn.ConversionError, match=r"its velocity is lost\. Something between the two blocks replaces"):
        gradients(net)


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("place", [0, 1])
def test_a_write_between_two_blocks(place: int, with_gradients: bool) -> None:
    def between(*pair: Tensor) -> Pair:
        pair[place].add_(1)
        return pair

    net = mn.convert(Net(between=between), like=description())
    with torch.set_grad_enabled(with_gradients), pytest.raises(mn.ConversionError, match="was changed in place before"):
        net(*both())


def test_a_write_to_what_a_block_has_taken_already() -> None:
    """As ordinary autograd does, stored activations refuse it."""
    taken: list[Tensor] = []

    def between(image: Tensor, text: Tensor) -> Pair:
        for tensor in taken:
            tensor.mul_(2)
        taken[:] = [image]
        return image, text

    net = mn.convert(Net(between=between), like=description(backward="stored"))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(net)


def test_what_the_stream_returns_belongs_to_the_parent() -> None:
    """A write to one of the two is none to the other, which autograd may have saved."""

    class Written(Net):
        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            for block in self.blocks:
                image, text = positional(block, image, text)
            squared = text.square().sum()
            image += 1
            return image.square().sum() + squared

    found = [
        gradients(mn.convert(Written(), both(), gamma=GAMMA, backward=backward)) for backward in ("stored", "auto")
    ]
    assert_same_gradients(*found)


class Overwriting(Double):
    place = 1

    def forward(self, image: Tensor, text: Tensor) -> Pair:
        (image, text)[self.place].mul_(2)
        return super().forward(image, text)


@pytest.mark.parametrize("place", [0, 1])
def test_a_block_that_overwrites_its_input(place: int) -> None:
    net = mn.convert(Net(block=Overwriting), like=description())
    for block in net.blocks:
        block.place = place
    with pytest.raises(mn.ReconstructionError, match="overwrites its own input in place"):
        gradients(net)


class Dropping(Double):
    def forward(self, image: Tensor, text: Tensor) -> Any:
        image, text = super().forward(image, text)
        return image, text[:, 1:]


def test_a_block_that_changes_a_shape() -> None:
    net = mn.convert(Net(block=Dropping), like=description())
    with pytest.raises(mn.ConversionError, match=r"block 'blocks.0' .* returned a tensor of shape \(2, 8, .* place 1"):
        gradients(net)


def test_a_block_without_one_of_them() -> None:
    net = mn.convert(Net(call=lambda block, image, text: block(image, text=[text])), like=description())
    with pytest.raises(mn.ConversionError, match=r"takes the stream's 2 tensors as its arguments \[0, 1\]"):
        gradients(net)


def test_checkpoints_of_single_blocks() -> None:
    for reentrant in (False, True):

        def call(block: nn.Module, image: Tensor, text: Tensor, reentrant: bool = reentrant) -> Pair:
            return torch.utils.checkpoint.checkpoint(block, image, text, use_reentrant=reentrant)

        net = mn.convert(Net(call=call), like=description())
        if reentrant:
            with pytest.raises(mn.ConversionError, match="another place in the autograd graph"):
                gradients(net)
        else:
            assert_same_gradients(gradients(net), gradients(mn.convert(Net(), like=description(backward="stored"))))


def test_the_description_makes_the_same_network() -> None:
    described = description()
    assert described["streams"][0]["companions"] == [{"arguments": 4 * [1], "outputs": 4 * [1]}]
    again = mn.convert(Net(), like=described)
    assert description() == json.loads(json.dumps(mn.describe(again)))
    torch.testing.assert_close(again(*both()), mn.convert(Net(), both(), gamma=GAMMA)(*both()), rtol=1e-5, atol=1e-5)


def test_a_description_of_before_carries_one_of_them() -> None:
    described = description()
    del described["streams"][0]["companions"]
    net = mn.convert(Net(), like=described)
    assert mn.describe(net) == described
    gradients(net)


@pytest.mark.parametrize(
    "wrong",
    [
        {"arguments": [1, 1, 1, 1], "outputs": [1, 1]},
        {"arguments": [1, 1, 1], "outputs": [1, 1, 1, 1]},
        {"arguments": [1, 1, 1, 1], "outputs": [0, 1, 1, 1]},
        {"arguments": None, "outputs": [1, 1, 1, 1]},
        {"outputs": [1, 1, 1, 1]},
        7,
    ],
    ids=str,
)
def test_a_damaged_description(wrong: Any) -> None:
    described = description()
    described["streams"][0]["companions"] = [wrong]
    with pytest.raises(mn.ConversionError, match="described"):
        mn.convert(Net(), like=described)


def test_copies_and_files() -> None:
    net = mn.convert(Net(), both(), gamma=GAMMA)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    expected = gradients(net)
    assert_same_gradients(gradients(copy.deepcopy(net)), expected)
    assert_same_gradients(gradients(torch.load(file, weights_only=False)), expected)


def test_a_saved_plan_carries_both(tmp_path: Any) -> None:
    plan = mn.plan(Net(depth=8), both(), gamma=GAMMA, budget="least")
    plan.save(tmp_path / "plan.json")
    again = mn.TrainingPlan.load(tmp_path / "plan.json")
    assert again.streams == plan.streams
    expected = gradients(mn.convert(Net(depth=8), plan=plan))
    assert_same_gradients(gradients(mn.convert(Net(depth=8), plan=again)), expected)


def test_reverted_and_at_gamma_0_it_is_the_network() -> None:
    expected = Net()(*both())
    net = mn.convert(Net(), both(), gamma=GAMMA)
    assert torch.equal(mn.revert(net)(*both()), expected)
    mn.set_gamma(net, 0)
    assert torch.equal(net(*both()), expected)


@pytest.mark.parametrize("backward", ["stored", "checkpointed", "reversible"])
def test_nothing_is_left_of_a_pass_that_is_dropped(backward: str) -> None:
    seen: list[weakref.ref[Any]] = []

    def between(image: Tensor, text: Tensor) -> Pair:
        seen.extend(map(weakref.ref, (image, text, image.grad_fn)))
        return image, text

    net = mn.convert(Net(between=between), like=description(backward=backward))
    gc.disable()  # nothing waits for it
    try:
        net(*both())
        gradients(net)
        assert len(seen) == 2 * 3 * 3
        assert not any(reference() is not None for reference in seen)
    finally:
        gc.enable()


@pytest.mark.parametrize("of", ["grad", "vmap", "jvp"])
def test_transforms(of: str) -> None:
    net, (image, text) = mn.convert(Net(), both(), gamma=GAMMA), both()
    if of == "grad":
        weights = dict(net.named_parameters())
        got = torch.func.grad(lambda p: torch.func.functional_call(net, p, (image, text)).square().mean())(weights)
        expected = {name: grad for name, grad in stored().items() if name in weights}
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    elif of == "vmap":
        got = torch.func.vmap(lambda a, b: net(a[None], b[None])[0])(image, text)
        torch.testing.assert_close(got, net(image, text), rtol=1e-4, atol=1e-5)
    else:
        value, tangent = torch.func.jvp(lambda a: net(a, text), (image,), (torch.ones_like(image),))
        expected = torch.func.jvp(lambda a: mn.revert(net)(a, text), (image,), (torch.ones_like(image),))[1]
        assert value.shape == tangent.shape == expected.shape
        assert tangent.isfinite().all()


def test_a_gradient_of_a_gradient() -> None:
    found = []
    for backward in ("stored", "reversible"):
        net = mn.convert(Net(), both(), gamma=GAMMA, backward=backward)
        image, text = both()
        image.requires_grad_()
        (grad,) = torch.autograd.grad(net(image, text).square().mean(), image, create_graph=True)
        grad.square().sum().backward()
        found.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert_same_gradients(*found)


def test_exported_for_any_number_of_tokens() -> None:
    net = mn.convert(Net(), both(), gamma=GAMMA)
    sizes = tuple({1: torch.export.Dim(name, min=4, max=64)} for name in ("image", "text"))
    program = torch.export.export(net, both(), dynamic_shapes=sizes, strict=False).module()
    other = both()[0][:, :15], both()[1][:, :7]
    torch.testing.assert_close(program(*other), net(*other), rtol=1e-4, atol=1e-5)
