"""Gamma over the steps of ``Trainer``: its end, its place after an interruption, and what checkpoints say."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import momentumnet as mn
from tests.hf.test_training import STEPS, base, hf, logits, trained, trainer, transformers, with_lora


def annealed(model: Any, folder: Path, end: float = 0, **options: Any) -> Any:
    run = trainer(model, folder, **options)
    run.add_callback(hf.GammaCallback(1 / 8, end))
    return run


def test_at_gamma_0_the_checkpoint_is_a_stock_one(tmp_path: Path) -> None:
    model = base(tmp_path / "base")
    annealed(model, tmp_path / "run").train()
    folder = tmp_path / "run" / f"checkpoint-{STEPS}"
    stock = transformers.LlamaForCausalLM.from_pretrained(folder)
    before = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(stock, bf16=True), logits(model, bf16=True))
    assert not torch.equal(logits(stock, bf16=True), logits(before, bf16=True))
    assert hf.export(model).same
    assert stock.config.momentumnet["streams"][0]["gamma"] == "0"
    halfway = hf.from_pretrained(tmp_path / "run" / "checkpoint-2")
    assert mn.describe(halfway)["streams"][0]["gamma"] == "1/16"


@pytest.mark.parametrize("wrap", [with_lora, lambda model: model], ids=["lora", "whole"])
def test_a_resumed_training_goes_on_at_its_gamma(wrap: Any, tmp_path: Path) -> None:
    whole = wrap(base(tmp_path / "base"))
    annealed(whole, tmp_path / "whole", 1 / 2).train()
    annealed(wrap(base(tmp_path / "base")), tmp_path / "run", 1 / 2, until=2).train()
    resumed = wrap(base(tmp_path / "base"))
    annealed(resumed, tmp_path / "run", 1 / 2).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    expected = trained(whole)
    assert all(torch.equal(value, expected[name]) for name, value in trained(resumed).items())
    loaded = hf.from_pretrained(tmp_path / "run" / f"checkpoint-{STEPS}")
    assert mn.describe(hf.streams_file.base_of(loaded))["streams"][0]["gamma"] == "1/2"
    assert torch.equal(logits(loaded, bf16=True), logits(resumed, bf16=True))


@pytest.mark.parametrize("wrap", [with_lora, lambda model: model], ids=["lora", "whole"])
def test_the_best_model_has_the_gamma_that_it_was_trained_at(wrap: Any, tmp_path: Path) -> None:
    """It had the best step's weights and the last step's gamma: another function, and saved as that, in silence."""
    model = wrap(base(tmp_path / "base"))
    # The largest loss is taken for the best, so that it is the first one.
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    run = annealed(model, tmp_path / "run", 1 / 2, eval_strategy="steps", eval_steps=2, **best)
    run.train()
    assert Path(run.state.best_model_checkpoint).name == "checkpoint-2"
    assert model.config.momentumnet["streams"][0]["gamma"] == "5/16"
    loaded = hf.from_pretrained(tmp_path / "run" / "checkpoint-2")
    assert torch.equal(logits(loaded, bf16=True), logits(model, bf16=True))


def test_options_that_do_not_fit_end_the_training_before_it_begins(tmp_path: Path) -> None:
    run = trainer(base(tmp_path / "base"), tmp_path / "run")
    run.add_callback(hf.GammaCallback(1 / 8, 0, shape="geometric"))
    with pytest.raises(ValueError, match="neither end can be 0"):
        run.train()
    run = trainer(base(tmp_path / "base"), tmp_path / "run")
    run.add_callback(hf.GammaCallback(1 / 8, 1 / 2, steps=2))
    run.train()
    assert run.model.config.momentumnet["streams"][0]["gamma"] == "1/2"
    assert Fraction(1, 2) == run.callback_handler.callbacks[-1].schedule.gamma
