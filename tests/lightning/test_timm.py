"""A vision transformer of timm, fine-tuned by Lightning with the callback: from images to a checkpoint and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import momentumnet as mn

pytest.importorskip("lightning", reason="pip install 'momentumnet[lightning]'")
pytest.importorskip("timm", reason="pip install 'momentumnet[timm]'")

import timm
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from momentumnet.lightning import MomentumConversion

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice on workers and loggers
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Digits(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 32, "depth": 6, "num_heads": 2}
        self.net = timm.create_model("vit_tiny_patch16_224", num_classes=10, **sizes)
        self.losses: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Any, index: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(module: Digits, folder: Path, **conversion: Any) -> Trainer:
    digits = load_digits()
    images = torch.tensor(digits.images[:512], dtype=torch.float32)[:, None] / 8 - 1
    seed_everything(0)
    trainer = Trainer(
        callbacks=[MomentumConversion(images[:2], **conversion), ModelCheckpoint(folder, filename="last")],
        max_epochs=5,
        accelerator="cpu",
        precision="bf16-mixed",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        module, DataLoader(TensorDataset(images, torch.tensor(digits.target[:512])), batch_size=64, shuffle=True)
    )
    return trainer


def test_a_vision_transformer_learns_with_the_bits_of_stored_training(tmp_path: Path) -> None:
    module, stored = Digits(), Digits()
    fit(module, tmp_path / "momentum")
    fit(stored, tmp_path / "stored", backward="stored")
    assert [len(stream["blocks"]) for stream in mn.describe(module)["streams"]] == [6]
    assert module.losses == stored.losses
    assert sum(module.losses[-8:]) < sum(module.losses[:8])

    kept = torch.load(tmp_path / "momentum" / "last.ckpt", weights_only=True)
    again = mn.convert(Digits(), like=kept["momentumnet"]["description"])
    again.load_state_dict(kept["state_dict"])
    mn.load_training_state(again, kept["momentumnet"]["streams"])
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(again.eval()(images), module.eval()(images))
