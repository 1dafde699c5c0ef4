"""A checkpoint of transformers or peft, loaded as the Momentum ResNet that was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import transformers
from torch import nn

from momentumnet.conversion.conversion import convert
from momentumnet.errors import ConversionError
from momentumnet.hf import streams_file
from momentumnet.listing import quoted
from momentumnet.resume import load_training_state
from momentumnet.streams.blocks.converted import VELOCITY_NAME, streams_of

_ADAPTER = "adapter_config.json"


def from_pretrained(
    path: str | Path, *, model_class: Any = None, initial_velocity: nn.Module | None = None, **options: Any
) -> nn.Module:
    """The model of a checkpoint, converted as it was when it was trained.

    The stock class is loaded, and converted as the checkpoint says: its ``momentum.json`` (of `StreamsCallback`), or
    else ``momentumnet`` in its ``config.json``, which `convert` and ``save_pretrained`` write. An adapter of peft is
    loaded onto its base model.

    Args:
        path: the folder, or a name on the hub.
        model_class: of transformers, with ``from_pretrained``. None for the one that ``config.json`` names.
        initial_velocity: a module that is built like the one that `convert` was given, where it was given one; its
            weights come from the checkpoint.
        options: for that ``from_pretrained`` (``dtype``, ``device_map``, ...).

    Returns:
        The converted model in eval mode, as ``from_pretrained`` of transformers gives it.

    Raises:
        ConversionError: the checkpoint does not say how it was converted, or names no class, or its adapter no base; or
            the model does not fit; or it has a module for its initial velocity and none is given, or no weights of one.
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
        return _with_adapter(path, beside, model_class, initial_velocity, options)
    config = transformers.AutoConfig.from_pretrained(path)
    description = getattr(config, "momentumnet", None) if beside is None else beside["description"]
    if description is None:
        raise ConversionError(
            f"{path} does not say that it was trained as a Momentum ResNet: it has no {streams_file.NAME}, and its "
            "config.json no 'momentumnet'. It is the network of its stock class, as is one that was trained at gamma 0 "
            "(which a budget may choose): load that class, and convert it with example inputs"
        )
    return _converted(path, _stock(path, config, model_class, options), description, beside, initial_velocity)


def _with_adapter(
    path: str | Path, beside: dict[str, Any] | None, model_class: Any, velocity: nn.Module | None, options: Any
) -> nn.Module:
    import peft

    base_path = peft.PeftConfig.from_pretrained(str(path)).base_model_name_or_path
    if not base_path:
        raise ConversionError(
            f"{_ADAPTER} in {path} names no base model, as its base came from no folder and no hub; build the base, "
            "convert it like the one that was trained (momentumnet.convert(base, like=...)), and load the adapter onto "
            "it (peft.PeftModel.from_pretrained)"
        )
    if beside is None:
        try:
            base = from_pretrained(base_path, model_class=model_class, initial_velocity=velocity, **options)
        except ConversionError as error:
            raise ConversionError(
                f"the adapter in {path} has no {streams_file.NAME} beside it, and of its base: {error}. "
                "StreamsCallback writes the file into the folders checkpoint-N of a training; Trainer.save_model and "
                "peft's save_pretrained write none: load such a folder, or copy its file here"
            ) from error
    else:
        config = transformers.AutoConfig.from_pretrained(base_path)
        stock = _stock(base_path, config, model_class, options)
        base = _converted(base_path, stock, beside["description"], beside, velocity)
    adapted: nn.Module = peft.PeftModel.from_pretrained(base, str(path))
    return adapted


def _stock(path: str | Path, config: Any, model_class: Any, options: Any) -> Any:
    names = getattr(config, "architectures", None) or []
    model_class = model_class or next((getattr(transformers, name, None) for name in names), None)
    if model_class is None:
        raise ConversionError(
            f"config.json of {path} names no class of transformers (architectures: {names}); give model_class="
        )
    return model_class.from_pretrained(path, **options)


def _converted(
    path: str | Path, stock: Any, description: Any, beside: dict[str, Any] | None, velocity: nn.Module | None
) -> nn.Module:
    model: nn.Module = convert(stock, like=description, initial_velocity=velocity, inplace=True)
    if velocity is not None:
        velocity.to(device=stock.device, dtype=stock.dtype)
        _load_velocity(path, model)
    if beside is not None:
        load_training_state(model, beside["streams"])
    return model


def _load_velocity(path: str | Path, model: nn.Module) -> None:
    """The weights of the module for the initial velocity, which no stock class has a place for."""
    names = [
        f"{stream.blocks[0]}.{VELOCITY_NAME}" for stream in streams_of(model) if stream.velocity_module is not None
    ]
    holder = _holder({name: model.get_submodule(name) for name in names})
    folder = path if Path(path).is_dir() else huggingface_hub.snapshot_download(str(path))
    found: Any = huggingface_hub.load_torch_model(holder, folder, strict=False)
    weights = holder.state_dict(keep_vars=True)  # streams may share the module, of which a file has one copy
    loaded = {id(value) for name, value in weights.items() if name not in found.missing_keys}
    lacking = [name for name, value in weights.items() if id(value) not in loaded]
    left = [key for key in found.unexpected_keys if key.startswith(tuple(f"{name}." for name in names))]
    if lacking or left:
        raise ConversionError(
            f"initial_velocity is not built like the module in {path}: "
            + "; ".join(
                f"{which} {quoted(keys)}"
                for which, keys in (("it alone has", lacking), ("the checkpoint alone has", left))
                if keys
            )
        )


def _holder(modules: Mapping[str, nn.Module]) -> nn.Module:
    """A module that holds these under their dotted names, and nothing else."""
    root = nn.Module()
    for name, module in modules.items():
        *path, last = name.split(".")
        parent = root
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, module)
    return root
