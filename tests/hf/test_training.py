"""A tiny Llama trained by ``Trainer`` with LoRA, interrupted, resumed and loaded: everywhere the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.errors import ConversionError, MomentumNetWarning

transformers = pytest.importorskip("transformers", reason="pip install 'momentumnet[hf]'")
peft = pytest.importorskip("peft", reason="pip install 'momentumnet[hf]'")
pytest.importorskip("accelerate", reason="pip install 'momentumnet[hf]'")

from momentumnet import hf  # noqa: E402

STEPS = 4


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


def ids(count: int = 16) -> Tensor:
    return torch.randint(64, (count, 8), generator=torch.Generator().manual_seed(1))


def rows() -> list[dict[str, Tensor]]:
    return [{"input_ids": row, "labels": row} for row in ids()]


def base(folder: Path) -> Any:
    """A stock model as it lies on a hub, loaded and converted."""
    if not folder.exists():
        llama().save_pretrained(folder)
    stock = transformers.LlamaForCausalLM.from_pretrained(folder)
    return mn.convert(stock, {"input_ids": ids(2)}, inplace=True)


def with_lora(model: Any) -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def trainer(model: Any, folder: Path, *, until: int = STEPS, **options: Any) -> Any:
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        bf16=True,
        save_steps=2,
        save_strategy="steps",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
        **options,
    )

    class Interruption(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            control.should_training_stop |= state.global_step >= until

    callbacks = [hf.StreamsCallback(), Interruption()]
    return transformers.Trainer(model, args, train_dataset=rows(), eval_dataset=rows(), callbacks=callbacks)


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def forget(model: nn.Module) -> None:
    """Have the streams expect values far from theirs, as another example would have shown them."""
    learned = mn.training_state(model)
    for stream in learned["streams"].values():
        stream["scale"] |= {"magnitude": 2e4, "start": 5e3}
    mn.load_training_state(model, learned)


def logits(model: nn.Module, *, bf16: bool = False) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return model.eval()(input_ids=ids(3)).logits.float()


def test_lora_resumed_and_loaded_to_the_bit(tmp_path: Path) -> None:
    whole = with_lora(base(tmp_path / "base"))
    before = trained(whole)
    trainer(whole, tmp_path / "whole").train()
    assert all(not torch.equal(value, before[name]) for name, value in trained(whole).items())

    trainer(with_lora(base(tmp_path / "base")), tmp_path / "run", until=2).train()
    resumed = with_lora(base(tmp_path / "base"))
    forget(resumed)
    trainer(resumed, tmp_path / "run").train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))

    expected = trained(whole)
    assert all(torch.equal(value, expected[name]) for name, value in trained(resumed).items())
    loaded = hf.from_pretrained(tmp_path / "run" / f"checkpoint-{STEPS}")
    assert mn.training_state(loaded) == mn.training_state(resumed)
    as_trained = logits(resumed, bf16=True)  # accelerate has put autocast into its forward
    assert torch.equal(logits(loaded, bf16=True), as_trained)
    stock = peft.PeftModel.from_pretrained(
        transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "run" / f"checkpoint-{STEPS}")
    )
    assert not torch.equal(logits(stock, bf16=True), as_trained)


def test_an_adapter_that_was_there_first_is_merged_and_loaded(tmp_path: Path) -> None:
    """The config is saved with the model inside of the adapter, so it names blocks as they are there."""
    llama().save_pretrained(tmp_path / "base")
    stock = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    adapted = mn.convert(with_lora(stock), {"input_ids": ids(2)}, inplace=True)
    mn.set_gamma(adapted, 1 / 4)
    before = logits(adapted)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    loaded = hf.from_pretrained(tmp_path / "merged")
    assert mn.describe(loaded)["streams"][0]["gamma"] == "1/4"
    torch.testing.assert_close(logits(loaded), before)


def test_an_adapter_without_what_was_trained_says_where_it_is(tmp_path: Path) -> None:
    with_lora(base(tmp_path / "base")).save_pretrained(tmp_path / "final")
    with pytest.raises(mn.ConversionError, match="the folders checkpoint-N of a training"):
        hf.from_pretrained(tmp_path / "final")


def test_an_adapter_whose_base_came_from_nowhere_says_so(tmp_path: Path) -> None:
    with_lora(mn.convert(llama(), {"input_ids": ids(2)})).save_pretrained(tmp_path / "final")
    with pytest.raises(mn.ConversionError, match=r"names no base model.*load the adapter onto it"):
        hf.from_pretrained(tmp_path / "final")


def test_a_whole_model_is_loaded_by_its_config(tmp_path: Path) -> None:
    model = base(tmp_path / "base")
    model.save_pretrained(tmp_path / "trained")

    loaded = hf.from_pretrained(tmp_path / "trained")

    assert mn.describe(loaded) == mn.describe(model)
    assert torch.equal(logits(loaded), logits(model))


def test_the_module_of_an_initial_velocity_is_loaded_with_its_weights(tmp_path: Path) -> None:
    velocity = nn.Linear(16, 16)
    model = mn.convert(llama(), {"input_ids": ids(2)}, initial_velocity=velocity, inplace=True)
    model.save_pretrained(tmp_path / "trained")

    loaded = hf.from_pretrained(tmp_path / "trained", initial_velocity=nn.Linear(16, 16))

    first: Any = loaded.get_submodule("model.layers.0.initial_velocity")
    assert torch.equal(first.weight, velocity.weight)
    assert torch.equal(first.bias, velocity.bias)
    assert (logits(loaded) - logits(model)).norm() < 1e-5 * logits(model).norm()
    halved = hf.from_pretrained(tmp_path / "trained", initial_velocity=nn.Linear(16, 16), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in halved.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("velocity", "message"),
    [
        (None, "had a module for its initial velocity; give one"),
        (nn.Linear(16, 16, bias=False), "the checkpoint alone has 'model.layers.0.initial_velocity.bias'"),
        (nn.Sequential(nn.Linear(16, 16)), "it alone has 'model.layers.0.initial_velocity.0.weight', .*; the check"),
    ],
)
def test_a_module_that_is_not_built_alike_is_refused(velocity: Any, message: str, tmp_path: Path) -> None:
    model = mn.convert(llama(), {"input_ids": ids(2)}, initial_velocity=nn.Linear(16, 16), inplace=True)
    model.save_pretrained(tmp_path / "trained")
    with pytest.raises(ConversionError, match=message):
        hf.from_pretrained(tmp_path / "trained", initial_velocity=velocity)


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "stock")
    with pytest.raises(ConversionError, match="does not say that it was trained as a Momentum ResNet"):
        hf.from_pretrained(tmp_path / "stock")
    base(tmp_path / "base").save_pretrained(tmp_path / "nameless")
    config = json.loads((tmp_path / "nameless" / "config.json").read_text())
    (tmp_path / "nameless" / "config.json").write_text(json.dumps({**config, "architectures": ["Nothing"]}))
    with pytest.raises(ConversionError, match="give model_class="):
        hf.from_pretrained(tmp_path / "nameless")
    loaded = hf.from_pretrained(tmp_path / "nameless", model_class=transformers.LlamaForCausalLM)
    assert mn.describe(loaded)["streams"]
    (tmp_path / "nameless" / "momentum.json").write_text("{")
    with pytest.raises(mn.CheckpointError, match="damaged"):
        hf.from_pretrained(tmp_path / "nameless")


def test_what_a_stock_class_computes(tmp_path: Path) -> None:
    model = base(tmp_path / "base")
    example = {"input_ids": ids(3)}

    report = hf.export(model, example)

    revert = mn.revert(model)
    expected = (logits(revert) - logits(model)).double().norm() / logits(model).double().norm()
    assert report.difference == pytest.approx(expected.item(), rel=1e-6)
    assert not report.same
    assert "gamma is 0.125" in str(report)
    assert hf.export(with_lora(base(tmp_path / "base"))).gammas
    mn.set_gamma(model, 0)
    assert hf.export(model, example).difference == 0
    assert str(hf.export(model)) == "the stock class computes the same function: gamma is 0"
    with pytest.raises(ConversionError, match="no momentum stream"):
        hf.export(revert)
    with pytest.raises(ConversionError, match="dict of keyword arguments"):
        hf.export(base(tmp_path / "base"), ids(3))


def test_gradient_checkpointing_of_converted_blocks_is_warned_of(tmp_path: Path) -> None:
    model = base(tmp_path / "base")
    with pytest.warns(MomentumNetWarning, match="saves no memory and costs one more forward"):
        trainer(model, tmp_path / "run", until=1, gradient_checkpointing=True).train()


def test_without_transformers() -> None:
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "import momentumnet as mn\n"
        "try: mn.hf\n"
        "except ImportError as error: assert 'pip install momentumnet[hf]' in str(error), error\n"
        "else: raise SystemExit('imported')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_optimizer_of_another_model_is_refused(tmp_path: Path) -> None:
    stock = llama()
    optimizer = torch.optim.SGD(stock.parameters(), lr=0.1)
    model = mn.convert(stock, {"input_ids": ids(2)})
    run = trainer(model, tmp_path / "run")
    run.optimizer = optimizer
    with pytest.raises(ConversionError, match="Convert with inplace=True"):
        run.train()
    with pytest.raises(ConversionError, match="nothing to describe"):
        trainer(stock, tmp_path / "run").train()
