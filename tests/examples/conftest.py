"""The examples import each other as scripts do: from their own folder. Real data is used where it lies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from momentumnet.bench.data.images import ImageData  # noqa: E402
from momentumnet.bench.networks.cifar_networks import CifarResNet  # noqa: E402

REAL_DATA = Path(os.environ.get("MOMENTUMNET_SHARED") or ROOT.parent / "shared") / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with CIFAR-10 and the checkpoints."""
    if not (REAL_DATA / "cifar10_small.npz").is_file():
        pytest.skip(f"no CIFAR-10 images and checkpoints in {REAL_DATA} (MOMENTUMNET_SHARED names its parent)")
    return REAL_DATA


@pytest.fixture
def noise() -> ImageData:
    """60 images of noise, 40 of them for training."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (60,), generator=generator)
    return ImageData("noise", images[:40], labels[:40], images[40:], labels[40:], augmented=True)


@pytest.fixture
def random_net() -> CifarResNet:
    """A ResNet-20 whose batch norms have seen a few images, so that its blocks are of a trained network's size."""
    torch.manual_seed(0)
    net = CifarResNet(20)
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(16, 3, 16, 16))
    return net.eval()
