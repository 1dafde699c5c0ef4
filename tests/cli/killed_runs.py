"""Trains a tiny network again and again, killed at random moments and resumed; a program of its own, as it forks.

It prints a line for each run that ended: kills so far, and the digest of its weights.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.bench.measuring.probe import StepCost
from momentumnet.cli import comparison_table
from momentumnet.cli.report import Report
from momentumnet.finetuning import run_folder
from momentumnet.finetuning.comparison import MOMENTUM, Comparison
from momentumnet.finetuning.data import ImageData
from momentumnet.finetuning.images import Preprocessing
from momentumnet.finetuning.recipe import Recipe
from momentumnet.finetuning.weights_file import load_weights
from momentumnet.memory import MemoryReport

FOLDER = Path("out")
PATIENCE = 50
COST = StepCost(MemoryReport(0, 0), 0.0)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x)
        return y


def comparison_of(network: nn.Module, images: list[tuple[Tensor, int]]) -> Comparison:
    data = ImageData("noise", images, images, ("a", "b"), Preprocessing(6), workers=0)
    recipe = Recipe(epochs=4, batch_size=4, lr=0.01, seed=0)
    settings = {"model": "tiny", "data": "noise", "gamma": "1/2", "others": "keep", "epochs": recipe.epochs}
    one = Comparison({MOMENTUM: network}, data, torch.device("cpu"), recipe, FOLDER, settings, Report())
    one._measure = lambda: {MOMENTUM: COST}  # type: ignore[method-assign]  # takes longer than the training
    return one


def train(one: Comparison) -> None:
    with run_folder.opened(FOLDER, "tiny", resume=True, overwrite=False):
        comparison_table.show(one, one.run(trained=(MOMENTUM,), resume=True), Report())


def child(one: Comparison) -> int:
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        train(one)
        os._exit(0)
    return process


def digest() -> str:
    state = load_weights(FOLDER / "model.safetensors")
    sha = hashlib.sha256()
    for name, value in sorted(state.items()):
        sha.update(name.encode() + value.numpy().tobytes())
    return sha.hexdigest()


def main(kills: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = [(torch.randn(3, 6, 6), index % 2) for index in range(8)]
    model = nn.Sequential(Block(), Block(), Block(), nn.Flatten(), nn.Linear(108, 2))
    network = mn.convert(model, torch.stack([image for image, _ in images]), gamma=0.5)
    one = comparison_of(network, images)
    chance = random.Random(0)
    start = time.perf_counter()
    os.waitpid(child(one), 0)
    whole = time.perf_counter() - start
    print(0, digest(), flush=True)
    done = 0
    while done < kills:
        shutil.rmtree(FOLDER, ignore_errors=True)
        for attempt in itertools.count():
            if attempt == PATIENCE:
                raise SystemExit(f"a run that was killed {PATIENCE} times has not come to its end")
            process = child(one)
            time.sleep(chance.uniform(0, (0.7 + attempt / 20) * whole))  # a machine may become slower meanwhile
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            if os.WIFEXITED(status):
                if os.WEXITSTATUS(status):
                    raise SystemExit(f"a resumed run failed with {os.WEXITSTATUS(status)}")
                break
            done += 1
        print(done, digest(), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
