"""Train a converted residual network on digits, 40 % of the training labels wrong: SGD, and SAM at as many passes.

In 60 passes SGD learns wrong labels by heart; SAM, which looks for flat minima, less of them, so it is above SGD in
every seed. Of four passes (--short) it has no use: nothing is learnt by heart yet, and it takes half as many steps.
"""

import argparse
import statistics

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import momentumnet as mn
from momentumnet.optim import SAM

torch.set_num_threads(1)  # layers this small are slower on more
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--short", action="store_true", help="four passes and one seed, to try it out")
SHORT = parser.parse_args().short
PASSES = 4 if SHORT else 60  # over the training images, a forward and a backward each
SEEDS = range(1) if SHORT else range(3)


class Block(nn.Module):
    """x + W relu(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


digits = load_digits()
generator = torch.Generator().manual_seed(0)
order = torch.randperm(len(digits.target), generator=generator)
images = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
labels = torch.tensor(digits.target)[order]
wrong = torch.rand(1000, generator=generator) < 0.4
shifts = torch.randint(1, 10, (1000,), generator=generator)
train_labels = torch.where(wrong, (labels[:1000] + shifts) % 10, labels[:1000])


def accuracy(rho: float | None, seed: int) -> float:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 128), *[Block() for _ in range(8)], nn.Linear(128, 10))
    network = mn.convert(network, images[:2]).train()
    if rho is None:
        optimizer: torch.optim.Optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    else:
        optimizer = SAM(network.parameters(), torch.optim.SGD, rho=rho, lr=0.05, momentum=0.9)
    epochs = PASSES if rho is None else PASSES // 2
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(1000).split(100):

            def closure(batch: torch.Tensor = batch) -> torch.Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(network(images[batch]), train_labels[batch])
                loss.backward()
                return loss

            optimizer.step(closure)
        scheduler.step()
    with torch.no_grad():
        return 100 * (network.eval()(images[1000:]).argmax(1) == labels[1000:]).float().mean().item()


print(f"{PASSES} passes over 1000 digits, 40 % of their labels wrong; accuracy on {len(labels) - 1000} others:")
for rho in (None, 0.05, 0.2):
    found = [accuracy(rho, seed) for seed in SEEDS]
    seeds = ", ".join(f"{value:.1f}" for value in found)
    print(f"{'SGD' if rho is None else f'SAM, rho {rho}':<14} {statistics.mean(found):.1f} % (seeds: {seeds})")
