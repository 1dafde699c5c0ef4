"""Fixup leaves what it was not asked for, and a network that it cannot serve, as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.core.passes.stream import MomentumStream
from momentumnet.init import fixup_
from tests.init.fixed_up import Residual, fixed, images, resnet


def test_frozen_parameters_stay() -> None:
    model = resnet()
    model.layer1.requires_grad_(False)
    before = copy.deepcopy(model)
    report = fixed(model)
    for name, parameter in model.layer1.named_parameters():
        if "fixup" not in name:
            assert torch.equal(parameter, before.layer1.get_parameter(name))
            assert not parameter.requires_grad
    assert (model.layer2[0].conv2.weight == 0).all()
    assert any(note.startswith("frozen") and "layer1.0.conv1.weight" in note for note in report.notes)


class LSTMClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.lstm(x)[0][:, -1]))


def test_no_residual_block() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))
    for model, example in ((LSTMClassifier(), torch.randn(2, 5, 4)), (plain, images())):
        before, kept = copy.deepcopy(model), list(model.modules())
        with pytest.raises(mn.ConversionError, match=f"no residual block found in {type(model).__name__}"):
            fixup_(model, example, remove_normalization=True)
        assert [id(module) for module in model.modules()] == [id(module) for module in kept]
        for name, value in before.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name


def test_failing_late_leaves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    model = resnet()
    before, hooks = copy.deepcopy(model), len(model.conv1._forward_hooks)
    monkeypatch.setattr("momentumnet.init.fixup._add_scalars", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fixed(model)
    assert list(model.state_dict()) == list(before.state_dict())
    assert torch.equal(model.conv1.weight, before.conv1.weight)
    assert len(model.conv1._forward_hooks) == hooks
    assert model.relu.inplace


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"16 normalisation layers .*remove_normalization=True"):
        fixup_(resnet(), images())
    with pytest.raises(ValueError, match="mode must be one of 'fan_in', 'fan_out'"):
        fixup_(resnet(), images(), mode="fan")
    model = nn.Sequential(Residual(), Residual())
    nn.utils.parametrizations.weight_norm(model[0].first)
    with pytest.raises(mn.ConversionError, match=r"computed from the parameters 0\.first\.parametrizations"):
        fixup_(model, torch.randn(2, 4, 7), remove_normalization=True)


def test_tracing_a_converted_network_leaves_its_streams_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without normalisation the old weights may overflow; a stream would choose its scale by that."""
    model = mn.convert(resnet(), images())

    def called(*_: object) -> None:
        raise AssertionError("the trace went through a stream")

    with monkeypatch.context() as patched:
        patched.setattr(MomentumStream, "call", called)
        fixed(model)
    assert type(model.layer1[0]).__mro__[1].__name__ == "ConvertedBlock"
    assert (model(images()) == 0).all()
