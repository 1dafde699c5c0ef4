"""`MomentumConversion` under Lightning's Trainer: conversion, budget, resume, mixed precision."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.errors import ConversionError, MomentumNetWarning
from tests.models import WIDTH, Chain, ResidualMLP

pytest.importorskip("lightning", reason="pip install 'momentumnet[lightning]'")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from momentumnet.lightning import MomentumConversion, callback

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice on workers and loggers
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Regression(LightningModule):
    """A chain of blocks, made at once or in ``configure_model``."""

    def __init__(self, *, late: bool = False) -> None:
        super().__init__()
        self.net: Any = None
        self.late = late
        if not late:
            self.make()

    def make(self) -> None:
        torch.manual_seed(0)
        self.net = Chain([ResidualMLP() for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Late(Regression):
    """Its layers are made when a fit begins."""

    def __init__(self) -> None:
        super().__init__(late=True)

    def configure_model(self) -> None:
        if self.net is None:
            self.make()


def data() -> Tensor:
    return torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1))


def loader() -> Any:
    return DataLoader(TensorDataset(data()), batch_size=4)


def fit(module: LightningModule, folder: Path, *callbacks: Any, resume: str | None = None, **options: Any) -> Trainer:
    plain = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**plain, **options})
    trainer.fit(module, loader(), ckpt_path=resume)
    return trainer


def by_hand(**options: Any) -> Regression:
    """The same training, converted and run without Lightning."""
    module = mn.convert(Regression(), data()[:4], inplace=True, backward="stored", **options)
    optimizer = module.configure_optimizers()
    for (x,) in loader():
        optimizer.zero_grad()
        module.training_step((x,), 0).backward()
        optimizer.step()
    return module


def assert_equal(module: nn.Module, expected: nn.Module) -> None:
    state = expected.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("kind", [Regression, Late])
def test_a_fit_trains_the_converted_module(kind: type[Regression], tmp_path: Path) -> None:
    module = kind()
    fit(module, tmp_path, MomentumConversion(data()[:4], gamma=0.5), max_epochs=1, enable_checkpointing=False)
    assert mn.describe(module)["streams"][0]["gamma"] == "1/2"
    assert_equal(module, by_hand(gamma=0.5))
    assert "configure_model" not in vars(module)


def test_fast_dev_run_by_the_modules_own_example(tmp_path: Path) -> None:
    module = Regression()
    module.example_input_array = data()[:4]
    fit(module, tmp_path, MomentumConversion(), fast_dev_run=True)
    assert len(mn.describe(module)["streams"][0]["blocks"]) == 4
    fit(module, tmp_path, MomentumConversion(), fast_dev_run=True)  # is converted already


def test_mixed_precision(tmp_path: Path) -> None:
    module = Regression()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, tmp_path, MomentumConversion(data()[:4]), fast_dev_run=True, precision="bf16-mixed")
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert all(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_resumed_fit_has_the_same_bits(tmp_path: Path) -> None:
    conversion = {"gamma": 0.9}
    whole, first, resumed = Regression(), Regression(), Regression()
    fit(whole, tmp_path, MomentumConversion(data()[:4], **conversion), max_epochs=4, enable_checkpointing=False)
    keep = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fit(first, tmp_path, MomentumConversion(data()[:4], **conversion), keep, max_epochs=2)
    last = str(tmp_path / "last.ckpt")
    assert torch.load(last, weights_only=False)["momentumnet"]["description"] == mn.describe(first)

    fit(resumed, tmp_path, MomentumConversion(data()[:4] / 100, **conversion), max_epochs=4, resume=last)

    assert_equal(resumed, whole)
    assert mn.training_state(resumed) == mn.training_state(whole)


def test_a_budget(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = Regression()
    with caplog.at_level(logging.INFO, "momentumnet"):
        fit(module, tmp_path, MomentumConversion(data()[:4], gamma=0.5, budget="1MiB"), fast_dev_run=True)
    assert mn.describe(module)["streams"]
    assert str(mn.plan(Regression(), data()[:4], gamma=0.5, budget="1MiB")).splitlines()[0][:20] in caplog.text


ACCUMULATING: list[tuple[dict[str, Any], list[Callback]]] = [
    ({"accumulate_grad_batches": 2}, []),
    ({}, [GradientAccumulationScheduler({1: 2})]),
]


@pytest.mark.parametrize(("options", "beside"), ACCUMULATING)
def test_a_budget_where_gradients_are_accumulated(
    options: dict[str, Any], beside: list[Callback], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gradients_planned(tmp_path, monkeypatch, beside, options, budget="1MiB") == "present"
    assert gradients_planned(tmp_path, monkeypatch, beside, options, budget="1MiB", gradients="anew") == "anew"
    assert gradients_planned(tmp_path, monkeypatch, [], {}, budget="1MiB") == "anew"
    fit(Regression(), tmp_path, MomentumConversion(data()[:4]), *beside, max_epochs=1, **options)
    fit(Regression(), tmp_path, MomentumConversion(data()[:4], spare=1000), *beside, max_epochs=1, **options)


def gradients_planned(
    folder: Path, monkeypatch: pytest.MonkeyPatch, beside: list[Callback], options: dict[str, Any], **budget: Any
) -> str:
    plans = []

    def planned(*args: Any, **options: Any) -> Any:
        plans.append(mn.plan(*args, **options))
        return plans[-1]

    monkeypatch.setattr(callback, "plan", planned)
    fit(Regression(), folder, MomentumConversion(data()[:4], **budget), *beside, max_epochs=1, **options)
    (plan,) = plans
    gradients: str = plan.gradients
    return gradients


def test_a_budget_with_what_no_plan_says(tmp_path: Path) -> None:
    module = Regression()
    fit(module, tmp_path, MomentumConversion(data()[:2], gamma=0.5, budget="1MiB", replan="auto"), max_epochs=1)
    assert mn.describe(module)["streams"]
    with pytest.raises(ConversionError, match="coupling"):
        fit(Regression(), tmp_path, MomentumConversion(data()[:2], budget="1MiB", coupling="bdia"), max_epochs=1)


@pytest.mark.parametrize("gammas", [(0, 1 / 8), (1 / 8, 0)])
def test_a_resumed_fit_keeps_the_function_that_its_plan_chose(
    gammas: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans go by measured times, which are not the same twice."""
    planned, modules = callback.plan, []
    keep = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    for epochs, gamma, resume in zip((2, 4), gammas, (None, str(tmp_path / "last.ckpt")), strict=True):
        monkeypatch.setattr(
            callback, "plan", lambda *args, gamma=gamma, **options: planned(*args, gamma=gamma, **options)
        )
        modules.append(Regression())
        conversion = MomentumConversion(data()[:4], budget="1MiB")
        fit(modules[-1], tmp_path, conversion, keep, max_epochs=epochs, resume=resume)
    first, resumed = ([stream["gamma"] for stream in mn.describe(module)["streams"]] for module in modules)
    assert first == resumed == (["1/8"] if gammas[0] else [])
    whole = Regression()
    conversion = MomentumConversion(data()[:4], gamma=gammas[0], budget="1MiB")
    fit(whole, tmp_path, conversion, max_epochs=4, enable_checkpointing=False)
    assert_equal(modules[-1], whole)


class Scheduled(Regression):
    """Goes on with its own schedule of gamma."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.left = checkpoint["schedule"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["schedule"] = self.schedule.state_dict()

    def on_train_start(self) -> None:
        self.schedule = mn.schedule_gamma(self, 100, 1 / 8, 1 / 2)
        if hasattr(self, "left"):
            self.schedule.load_state_dict(self.left)

    def on_train_batch_end(self, *_: Any) -> None:
        self.schedule.step()


def test_a_schedule_of_gamma_that_goes_on_is_no_other_function(tmp_path: Path) -> None:
    """Its first gamma was compared with that of the checkpoint, and told as an error of the user's."""
    asked = {"gamma": 1 / 8}
    keep = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fit(Scheduled(), tmp_path, MomentumConversion(data()[:4], **asked), keep, max_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MomentumNetWarning)
        module, conversion = Scheduled(), MomentumConversion(data()[:4], **asked)
        fit(module, tmp_path, conversion, max_epochs=2, resume=str(tmp_path / "last.ckpt"))


@pytest.mark.parametrize("asked", [{"gamma": 0.9}, {"coupling": "bdia"}], ids=["gamma", "coupling"])
def test_another_function_that_is_asked_for_is_kept_and_told(asked: dict[str, Any], tmp_path: Path) -> None:
    """A coupling that was asked for gave way to the checkpoint's, and another gamma was trained, without a word."""
    keep = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fit(Regression(), tmp_path, MomentumConversion(data()[:4]), keep, max_epochs=1)
    wanted = mn.convert(Regression(), data()[:4], **asked)
    module = Regression()
    with pytest.warns(MomentumNetWarning, match="trained as another Momentum ResNet .*gamma 1/8; now .*"):
        fit(module, tmp_path, MomentumConversion(data()[:4], **asked), max_epochs=2, resume=str(tmp_path / "last.ckpt"))
    assert mn.describe(module)["streams"] == mn.describe(wanted)["streams"]


def test_the_peak_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback, "_peak_bytes", lambda device: 3 * 2**20)
    conversion = MomentumConversion(data()[:4])
    trainer = fit(Regression(), tmp_path, conversion, max_epochs=1, enable_checkpointing=False)
    assert trainer.callback_metrics["peak_memory_mib"] == 3


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not gama, inplace"):
        MomentumConversion(gama=0.5, inplace=True)
    with pytest.raises(ConversionError, match="example_input_array"):
        fit(Regression(), tmp_path, MomentumConversion(), fast_dev_run=True)


def test_without_lightning() -> None:
    program = (
        "import sys; sys.modules['lightning'] = None\n"
        "import momentumnet as mn\n"
        "try: mn.lightning\n"
        "except ImportError as error: assert 'pip install momentumnet[lightning]' in str(error), error\n"
        "else: raise SystemExit('imported')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
