"""How every torchvision model is built and fed: random weights, small inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from momentumnet.bench.zoo.entries import Entry

# Over 250 million parameters: discovery and one forward are enough, in bfloat16.
LARGE = ("vit_h_14", "vit_l_16", "vit_l_32", "regnet_y_128gf")
DETECTION = ("fasterrcnn", "maskrcnn", "keypointrcnn", "retinanet", "fcos", "ssd")
REGIONS = ("fasterrcnn", "maskrcnn", "keypointrcnn")
SEGMENTATION = ("fcn", "deeplabv3", "lraspp")


def names() -> list[str]:
    """Every torchvision model but the quantized ones."""
    return [name for name in torchvision.models.list_models() if not name.startswith("quantized")]


def entries() -> Iterator[Entry]:
    """Every model, the large ones last."""
    for name in sorted(names(), key=lambda name: name in LARGE):
        step = partial(inputs, name, training=True)
        yield Entry("torchvision", name, partial(build, name), partial(inputs, name), step, large=name in LARGE)


def is_detection(name: str) -> bool:
    """Whether the model takes a list of images, and targets in training."""
    return name.startswith(DETECTION)


@contextmanager
def _constant_initialisation() -> Iterator[None]:
    """Random initialisation of a billion parameters takes minutes, and the large models need no good weights."""
    saved = {name: getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")}
    try:
        for name in saved:
            setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
        torch.set_default_dtype(torch.bfloat16)
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        for name, function in saved.items():
            setattr(nn.init, name, function)


def build(name: str, *, seed: int = 0) -> nn.Module:
    """The model with random weights, small where its builder allows it."""
    options: dict[str, Any] = {"weights": None}
    if is_detection(name) or name.startswith(SEGMENTATION):
        options["weights_backbone"] = None
    if name.startswith("vit") and name not in LARGE:
        options["image_size"] = 64
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": False}
    if is_detection(name) and not name.startswith("ssd"):
        options |= {"min_size": 128, "max_size": 128}
    if name.startswith(REGIONS):  # as many of them as images of this size have, not as those of 800 pixels
        options |= {"rpn_post_nms_top_n_train": 100, "rpn_post_nms_top_n_test": 100, "box_batch_size_per_image": 32}
    torch.manual_seed(seed)
    if name in LARGE:
        with _constant_initialisation():
            model = torchvision.models.get_model(name, **options)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(1e-3)
            return model
    return torchvision.models.get_model(name, **options)


def inputs(name: str, *, training: bool = False) -> Any:
    """Inputs as ``find_streams`` takes them: a tensor, a tuple of positional arguments or a dict of keyword ones."""
    batch = 1 if name in LARGE or name.startswith(("mvit", "swin3d", "maxvit")) else 2
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    if is_detection(name):
        images = [random(3, 128, 128) for _ in range(batch)]
        return (images, [_target(name) for _ in images]) if training else (images,)
    if name.startswith("raft"):
        return {"image1": random(batch, 3, 128, 128), "image2": random(batch, 3, 128, 128), "num_flow_updates": 3}
    if name.startswith("mvit") or name == "s3d":
        return random(batch, 3, 16, 224, 224)
    if name.startswith("swin3d"):
        return random(batch, 3, 4, 64, 64)
    if name.endswith("_18") and name.startswith(("r3d", "mc3", "r2plus1d")):
        return random(batch, 3, 4, 32, 32)
    large_vit = name in LARGE and name.startswith("vit")
    size = 224 if name.startswith("maxvit") or large_vit else 96 if name.startswith("inception") else 64
    images_ = random(batch, 3, size, size)
    return images_.bfloat16() if name in LARGE else images_


def _target(name: str) -> dict[str, Tensor]:
    target = {"boxes": torch.tensor([[10.0, 12.0, 90.0, 100.0]]), "labels": torch.tensor([1])}
    if name.startswith("maskrcnn"):
        target["masks"] = torch.ones(1, 128, 128, dtype=torch.uint8)
    if name.startswith("keypointrcnn"):
        target["keypoints"] = torch.full((1, 17, 3), 50.0)
    return target
