"""A checkpoint of transformers or peft, loaded as the Momentum ResNet that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from torch import nn

from momentumnet.conversion import convert
from momentumnet.errors import ConversionError
from momentumnet.hf import streams_file
from momentumnet.resume import load_training_state

_ADAPTER = "adapter_config.json"


def from_pretrained(path: str | Path, *, model_class: Any = None, **options: Any) -> nn.Module:
    """The model of a checkpoint, converted as it was when it was trained.

    The stock class is loaded, and converted as the checkpoint says: its ``momentum.json`` (of `StreamsCallback`), or
    else ``momentumnet`` in its ``config.json``, which `convert` and ``save_pretrained`` write. An adapter of peft is
    loaded onto its base model.

    Args:
        path: the folder, or a name on the hub.
        model_class: of transformers, with ``from_pretrained``. None for the one that ``config.json`` names.
        options: for that ``from_pretrained`` (``dtype``, ``device_map``, ...).

    Returns:
        The converted model in eval mode, as ``from_pretrained`` of transformers gives it.

    Raises:
        ConversionError: the checkpoint does not say how it was converted, or names no class; or the model does not fit.
        CheckpointError: its ``momentum.json`` is damaged.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3))
        >>> mn.convert(model, {"input_ids": torch.randint(32, (2, 8))}, inplace=True).save_pretrained("trained")
        >>> trained = mn.hf.from_pretrained("trained")
    """
    beside = streams_file.read(Path(path))
    if (Path(path) / _ADAPTER).is_file():
        return _with_adapter(path, beside, model_class, options)
    config = transformers.AutoConfig.from_pretrained(path)
    description = getattr(config, "momentumnet", None) if beside is None else beside["description"]
    if description is None:
        raise ConversionError(
            f"{path} does not say that it was trained as a Momentum ResNet: it has no {streams_file.NAME}, and its "
            "config.json no 'momentumnet'. Load the stock class, and convert it with example inputs"
        )
    return _converted(_stock(path, config, model_class, options), description, beside)


def _with_adapter(path: str | Path, beside: dict[str, Any] | None, model_class: Any, options: Any) -> nn.Module:
    import peft

    base_path = peft.PeftConfig.from_pretrained(str(path)).base_model_name_or_path
    if beside is None:
        try:
            base = from_pretrained(base_path, model_class=model_class, **options)
        except ConversionError as error:
            raise ConversionError(
                f"the adapter in {path} has no {streams_file.NAME} beside it, and of its base: {error}. "
                "StreamsCallback writes the file into the folders checkpoint-N of a training; Trainer.save_model and "
                "peft's save_pretrained write none: load such a folder, or copy its file here"
            ) from error
    else:
        config = transformers.AutoConfig.from_pretrained(base_path)
        base = _converted(_stock(base_path, config, model_class, options), beside["description"], beside)
    adapted: nn.Module = peft.PeftModel.from_pretrained(base, str(path))
    return adapted


def _stock(path: str | Path, config: Any, model_class: Any, options: Any) -> nn.Module:
    names = getattr(config, "architectures", None) or []
    model_class = model_class or next((getattr(transformers, name, None) for name in names), None)
    if model_class is None:
        raise ConversionError(
            f"config.json of {path} names no class of transformers (architectures: {names}); give model_class="
        )
    model: nn.Module = model_class.from_pretrained(path, **options)
    return model


def _converted(stock: nn.Module, description: Any, beside: dict[str, Any] | None) -> nn.Module:
    model = convert(stock, like=description, inplace=True)
    if beside is not None:
        load_training_state(model, beside["streams"])
    return model
