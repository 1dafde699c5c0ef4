"""A callback of ``Trainer`` for converted models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from momentumnet.description.description import describe
from momentumnet.description.model_config import base_of
from momentumnet.errors import ConversionError
from momentumnet.hf import streams_file
from momentumnet.resume import load_training_state


class StreamsCallback(TrainerCallback):
    """Keeps what a converted model is, and what its streams have learned, in each checkpoint of ``Trainer``.

    A training that is resumed from it has the bits of one that was not interrupted, and `from_pretrained` loads an
    adapter's checkpoint onto its base model, converted as it was. An optimizer of another model is refused.

    Raises:
        ConversionError: when training begins: the optimizer holds no parameter that the model trains, or the model is
            not converted.

    Example:
        >>> import momentumnet as mn
        >>> callbacks = [mn.hf.StreamsCallback()]  # for Trainer(model, args, callbacks=callbacks)
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Put back what the streams had learned, where a training is resumed."""
        model = given["model"]
        describe(base_of(model))  # raises now, not at the first checkpoint
        _check_optimizer(model, given.get("optimizer"))
        if state.global_step:
            beside = streams_file.read(_folder(args, state))
            if beside is not None:
                load_training_state(base_of(model), beside["streams"])

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write ``momentum.json`` into the checkpoint."""
        if state.is_world_process_zero:
            streams_file.write(given["model"], _folder(args, state))


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _check_optimizer(model: nn.Module, optimizer: Any) -> None:
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if not isinstance(optimizer, torch.optim.Optimizer):
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in model.parameters() if parameter.requires_grad):
        raise ConversionError(
            "the optimizer holds no parameter that this model trains: it was made for the model before "
            "momentumnet.convert copied it. Convert with inplace=True, or make the optimizer afterwards"
        )
