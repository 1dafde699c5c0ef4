"""How the small models of transformers are built and fed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.bench.zoo import architectures
from momentumnet.bench.zoo.depths import deepened
from momentumnet.bench.zoo.entries import Entry

BATCH, TOKENS = 2, 48

Inputs = dict[str, Tensor]
Settings = Mapping[str, Any]


Builder = Callable[..., nn.Module]
Configurations = Callable[..., list[dict[str, Any]]]


def entries(*, layers: int | None = None) -> Iterator[Entry]:
    """The architectures that the installed version has, with at least so many ``layers`` in each stack of them."""
    import transformers

    for name, build, inputs, configurations in _all():
        if hasattr(transformers, name.partition(",")[0]):
            yield Entry(
                "transformers",
                name,
                partial(build, layers=layers),
                inputs,
                inputs,
                layers=partial(_deeper, configurations, layers),
            )


def _deeper(configurations: Configurations, layers: int | None) -> int | None:
    """The number of layers, if it changes anything."""
    return None if configurations(layers=layers) == configurations(layers=None) else layers


def _all() -> Iterator[tuple[str, Builder, Callable[[], Inputs], Configurations]]:
    tables: list[tuple[Mapping[str, Settings], Callable[[], Inputs]]] = [
        (architectures.DECODERS, tokens),
        (architectures.EXPERTS, tokens),
        (architectures.STATE_SPACES, tokens),
        (architectures.ENCODERS, tokens),
        (architectures.ENCODER_DECODERS, token_pairs),
        (architectures.IMAGES, images),
        (architectures.VIDEOS, videos),
        (architectures.WAVES, waves),
    ]
    for table, inputs in tables:
        for name, settings in table.items():
            yield name, partial(build, name, settings), partial(_sized, inputs, settings), _single(name, settings)
    for name, settings in architectures.DETECTION_LOSSES.items():
        yield f"{name}, auxiliary losses", partial(build, name, settings), images, _single(name, settings)
    for table in (architectures.SPECTROGRAMS, architectures.SPEECH, architectures.MIXED):
        for name, settings in table.items():
            yield name, partial(build, name, settings), _INPUTS[name], _single(name, settings)
    for name, parts in architectures.PAIRS.items():
        inputs = _INPUTS.get(name, tokens_and_images)
        yield name, partial(_build_pair, name, parts), inputs, partial(_pair, parts)


def build(name: str, settings: Settings, *, layers: int | None = None) -> nn.Module:
    """A random model of the class ``name``, in training mode."""
    import transformers

    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model: nn.Module = cls(cls.config_class(**small(cls.config_class, settings, layers=layers)))
    return model.train()


def small(config: type, settings: Settings, *, layers: int | None = None) -> dict[str, Any]:
    """`architectures.SMALL`, as far as the configuration knows it, with these settings, and ``layers`` at least."""
    known = inspect.signature(config).parameters
    usual = {name: value for name, value in architectures.SMALL.items() if name in known}
    given = {name: value for name, value in {**usual, **settings}.items() if value is not None}
    return given if layers is None else deepened(given, layers)


def _single(name: str, settings: Settings) -> Configurations:
    """Makes the settings of the model's one configuration."""

    def configurations(*, layers: int | None) -> list[dict[str, Any]]:
        import transformers

        return [small(getattr(transformers, name).config_class, settings, layers=layers)]

    return configurations


def _pair(parts: Mapping[str, tuple[str, Settings]], *, layers: int | None) -> list[dict[str, Any]]:
    """The settings of the configurations of a model of two parts."""
    import transformers

    return [small(getattr(transformers, config), settings, layers=layers) for config, settings in parts.values()]


def _build_pair(name: str, parts: Mapping[str, tuple[str, Settings]], *, layers: int | None = None) -> nn.Module:
    import transformers

    settings = zip(parts.items(), _pair(parts, layers=layers), strict=True)
    given: dict[str, Any] = {
        part: getattr(transformers, config)(**of).to_dict() for (part, (config, _)), of in settings
    }
    if name == "LlavaForConditionalGeneration":
        given["image_token_index"] = given["image_token_id"] = IMAGE_TOKEN
    return build(name, {"projection_dim": 32, **given} if name != "LlavaForConditionalGeneration" else given)


def _sized(inputs: Callable[..., Inputs], settings: Settings) -> Inputs:
    """The inputs; images as large as the settings say."""
    size = settings.get("image_size")
    return inputs(size=size[0]) if size and inputs is images else inputs()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator())


def _token_ids(length: int = TOKENS) -> Tensor:
    return torch.randint(5, 60, (BATCH, length), generator=_generator())


def tokens() -> Inputs:
    """Two sequences, the second of which ends early."""
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    mask[1, 2 * TOKENS // 3 :] = 0
    return {"input_ids": _token_ids(), "attention_mask": mask}


def token_pairs() -> Inputs:
    """Sequences for an encoder, and others for its decoder."""
    return {**tokens(), "decoder_input_ids": _token_ids(8)}


def images(*, size: int = 32) -> Inputs:
    """Two images."""
    return {"pixel_values": _random(BATCH, 3, size, size)}


def videos() -> Inputs:
    """Two videos of four frames."""
    return {"pixel_values": _random(BATCH, 4, 3, 32, 32)}


def waves() -> Inputs:
    """Two waveforms."""
    return {"input_values": _random(BATCH, 640)}


def tokens_and_images() -> Inputs:
    """Two sequences, and an image for each."""
    return {**tokens(), **images()}


IMAGE_TOKEN = 63


def _tokens_that_stand_for_images() -> Inputs:
    ids = torch.cat([torch.full((BATCH, 16), IMAGE_TOKEN), _token_ids()], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images()}


_INPUTS: dict[str, Callable[[], Inputs]] = {
    "LlavaForConditionalGeneration": _tokens_that_stand_for_images,
    "ASTModel": lambda: {"input_values": _random(BATCH, 24, 16)},
    "Wav2Vec2BertModel": lambda: {"input_features": _random(BATCH, 24, 16)},
    "WhisperModel": lambda: {"input_features": _random(BATCH, 16, 32), "decoder_input_ids": _token_ids(8)},
    "Speech2TextModel": lambda: {"input_features": _random(BATCH, 32, 16), "decoder_input_ids": _token_ids(8)},
    "ViltModel": tokens_and_images,
    "LxmertModel": lambda: {
        **tokens(),
        "visual_feats": _random(BATCH, 5, 16),
        "visual_pos": torch.rand(BATCH, 5, 4, generator=_generator()),
    },
    "VisualBertModel": lambda: {**tokens(), "visual_embeds": _random(BATCH, 5, 16)},
    "PatchTSTModel": lambda: {"past_values": _random(BATCH, 16, 1)},
    "DecisionTransformerModel": lambda: {
        "states": _random(BATCH, 5, 4),
        "actions": _random(BATCH, 5, 2),
        "rewards": _random(BATCH, 5, 1),
        "returns_to_go": _random(BATCH, 5, 1),
        "timesteps": torch.arange(5).expand(BATCH, 5),
        "attention_mask": torch.ones(BATCH, 5),
    },
}
