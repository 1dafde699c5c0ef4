"""Outputs of two networks compared on data: against float64 sums made here; both networks are left as they were."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import Chain, ResidualMLP


def chain(width: int = 16, blocks: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return Chain([ResidualMLP(width) for _ in range(blocks)], width)


def perturbed(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return other


def test_the_numbers_are_those_of_float64_sums() -> None:
    before = chain()
    after = perturbed(before)
    batches = [torch.randn(7, 16), torch.randn(3, 16)]

    found = mn.compare_outputs(before, after, batches)

    with torch.no_grad():
        first, second = (torch.cat([model(x) for x in batches]).double() for model in (before, after))
    assert found.difference == pytest.approx(float((second - first).norm() / first.norm()), rel=1e-6)
    assert found.predictions == 10
    assert found.agreeing == sum(int(a.argmax()) == int(b.argmax()) for a, b in zip(first, second, strict=True))
    assert found.agreement == found.agreeing / 10
    assert found.batches == 2


def test_a_conversion_is_compared_with_its_original() -> None:
    model, x = chain(), torch.randn(32, 16)
    closer = mn.compare_outputs(model, mn.convert(model, x, gamma=1 / 64), [x])
    farther = mn.compare_outputs(model, mn.convert(model, x, gamma=0.9), [x])
    assert 0 < closer.difference < 0.1 * farther.difference
    assert "nearly the same function" in str(closer)


def test_equal_networks_are_the_same() -> None:
    found = mn.compare_outputs(chain(), chain(), [torch.randn(4, 16)])
    assert found == mn.OutputComparison(difference=0.0, agreeing=4, predictions=4, batches=1)
    assert str(found) == ("the same function: outputs differ by 0 %, 4 of 4 predictions agree (100 %), on 1 batch")


class Noisy(nn.Module):
    """Draws in eval mode, counts its calls, keeps what it saw, and writes into its input."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = nn.Dropout()
        self.norm = nn.BatchNorm1d(16)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = x
        x.mul_(2)
        return self.scale * self.dropout(self.norm(x)) + torch.rand_like(x)


def test_both_networks_and_the_batches_are_left_as_found() -> None:
    before, after = Noisy(1.0), Noisy(1.0).eval()
    before.norm.eval()
    batch = torch.randn(6, 16)
    kept, state = batch.clone(), torch.get_rng_state()
    buffers = [copy.deepcopy(dict(model.named_buffers())) for model in (before, after)]

    found = mn.compare_outputs(before, after, [batch])

    assert found.difference == 0, "both draw the same random numbers, and are in eval mode"
    assert torch.equal(batch, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert (before.training, before.norm.training, after.training, after.dropout.training) == (
        True,
        False,
        False,
        False,
    )
    for model, saved in zip((before, after), buffers, strict=True):
        assert not hasattr(model, "seen")
        assert all(torch.equal(buffer, saved[name]) for name, buffer in model.named_buffers())


def test_both_are_left_as_found_after_an_error() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    model = chain().train()
    failing = Failing().train()
    with pytest.raises(RuntimeError, match="no"):
        mn.compare_outputs(model, failing, [torch.randn(2, 16)])
    assert model.training
    assert failing.training


def test_nothing_is_recorded_for_backward() -> None:
    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            modes.append(torch.is_grad_enabled())
            return x * self.weight

    modes: list[bool] = []
    mn.compare_outputs(Watching(), Watching(), [torch.randn(2, 3)])
    assert modes == [False, False]


@dataclass
class Returned:
    logits: Tensor
    hidden: Tensor


class Wrapped(nn.Module):
    """Returns what ``form`` makes of logits and a hidden tensor that is far off."""

    def __init__(self, form: Any, shift: float) -> None:
        super().__init__()
        self.form, self.shift = form, shift

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.form(x if y is None else x + y, x + self.shift)


FORMS = {
    "dataclass with logits": (Returned, 0.0, 5),
    "dict with logits": (lambda logits, hidden: {"loss": hidden.sum(), "hidden": hidden, "logits": logits}, 0.0, 5),
    "tuple": (lambda logits, hidden: (logits, [hidden, None, hidden.sum()]), None, 5),
    "one of three dimensions": (lambda logits, hidden: logits[None], 0.0, 0),
    "logits of three dimensions": (lambda logits, hidden: {"logits": logits[None]}, 0.0, 5),
    "logits of four dimensions": (lambda logits, hidden: {"logits": logits.T[None, :, :, None]}, 0.0, 5),
    "logits of one class": (lambda logits, hidden: {"logits": logits[:, :1]}, 0.0, 0),
}


@pytest.mark.parametrize("name", FORMS)
def test_outputs_of_every_form(name: str) -> None:
    form, difference, predictions = FORMS[name]
    x = torch.randn(5, 4)
    found = mn.compare_outputs(Wrapped(form, 0.0), Wrapped(form, 3.0), [x])
    if difference is None:  # all tensors of one dimension or more count
        difference = float((3.0 * torch.ones(5, 4)).norm() / torch.cat([x, x]).norm())
    assert found.difference == pytest.approx(difference, rel=1e-6)
    assert (found.agreeing, found.predictions) == (predictions, predictions)


@pytest.mark.parametrize(
    "batch", [torch.ones(2, 4), (torch.ones(2, 4), torch.ones(2, 4)), {"x": torch.ones(2, 4), "y": torch.ones(2, 4)}]
)
def test_inputs_of_every_form_that_convert_takes(batch: Any) -> None:
    model = Wrapped(Returned, 0.0)
    assert mn.compare_outputs(model, copy.deepcopy(model), iter([batch, batch])).batches == 2


def test_the_dimension_of_the_classes_can_be_given() -> None:
    class Three(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(1)

    x = torch.randn(2, 3, 5)
    assert mn.compare_outputs(Three(), Turned(), [x]).agreement is None
    found = mn.compare_outputs(Three(), Turned(), [x], class_dim=1)
    assert found.predictions == 10
    assert found.agreeing == int((x.argmax(1) == 2 - x.argmax(1)).sum())


def test_infinite_scores_that_both_give_are_no_difference() -> None:
    class Masked(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.factor * x, torch.full((len(x), 1), -math.inf)], 1)

    found = mn.compare_outputs(Masked(1.0), Masked(1.5), [torch.randn(4, 3)])
    assert found.difference == pytest.approx(0.5)
    broken = mn.compare_outputs(Masked(1.0), Masked(math.nan), [torch.randn(4, 3)])
    assert math.isnan(broken.difference)
    assert str(broken).startswith("another function: outputs are not finite")


def test_nan_agrees_with_no_prediction() -> None:
    """``argmax`` takes NaN for the largest, so that outputs of NaN were "nearly the same function"."""
    sure = nn.Linear(3, 2)
    nn.init.constant_(sure.weight, 0)
    with torch.no_grad():
        sure.bias.copy_(torch.tensor([1.0, 0.0]))
    broken = copy.deepcopy(sure)
    nn.init.constant_(broken.bias, math.nan)
    for before in (sure, copy.deepcopy(broken)):
        found = mn.compare_outputs(before, broken, [torch.randn(4, 3)])
        assert (found.agreeing, found.predictions, found.nearly_same) == (0, 4, False)


def test_a_transformer_is_compared_off_its_fused_path() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=True).eval()
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    batch = {"src": x, "src_key_padding_mask": padding}
    # The fused path makes padded positions zero, which conversion has nothing to do with.
    assert mn.compare_outputs(model, mn.convert(model, batch, gamma=0), [batch]).difference < 1e-6


@pytest.mark.parametrize(
    ("batches", "error", "text"),
    [
        ([], ValueError, "no batch"),
        (torch.ones(2, 16), TypeError, r"for one batch pass \[batch\]"),
        ({"x": torch.ones(2, 16)}, TypeError, "got one dict"),
        (3, TypeError, "got one int"),
        ([(torch.ones(2, 16), torch.ones(2))], ValueError, "inputs for inputs, _ in loader"),
        ([[torch.ones(2, 16), torch.ones(2)]], ValueError, "inputs for inputs, _ in loader"),
        (["text"], mn.ConversionError, "type str"),
    ],
)
def test_batches_that_are_none(batches: Any, error: type[Exception], text: str) -> None:
    linear = nn.Linear(16, 2)
    with pytest.raises(error, match=text):
        mn.compare_outputs(linear, copy.deepcopy(linear), batches)


def test_networks_that_cannot_be_compared() -> None:
    x = torch.ones(2, 16)
    model = chain()
    with pytest.raises(ValueError, match=r"revert\(model\)"):
        mn.compare_outputs(model, model, [x])
    with pytest.raises(TypeError, match=r"after must be an nn\.Module, got function"):
        mn.compare_outputs(model, lambda x: x, [x])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"different outputs: before .*4.*after .*16"):
        mn.compare_outputs(model, nn.Identity(), [x])
    with pytest.raises(ValueError, match="before returns no floating-point tensor"):
        mn.compare_outputs(Wrapped(lambda logits, hidden: logits.sum(), 0.0), model, [x])
    for class_dim in (2, True, 1.0):
        with pytest.raises(ValueError, match="class_dim"):
            mn.compare_outputs(model, chain(), [x], class_dim=class_dim)  # type: ignore[arg-type]


def test_an_output_of_transformers_is_compared_by_its_logits() -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(32, (2, 6))
    batch = {"input_ids": ids, "labels": ids}
    converted = mn.convert(model, batch, gamma=1 / 64)

    found = mn.compare_outputs(model, converted, [batch])

    with torch.no_grad():
        first, second = (network.eval()(**batch).logits.double() for network in (model, converted))
    assert found.difference == pytest.approx(float((second - first).norm() / first.norm()), rel=1e-4)
    assert found.predictions == 12
