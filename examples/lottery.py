"""Lottery tickets of LeNet-300-100 on digits, beside their controls; then one of channels, made into smaller layers."""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from momentumnet.prune import ChannelStructure, LotteryTicket, TrainingLog

torch.set_num_threads(1)  # layers this small are slower on more
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--short", action="store_true", help="only a few steps, to try it out")
SHORT = parser.parse_args().short
STEPS, ROUNDS = (20, 1) if SHORT else (600, 10)

digits = load_digits()
order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
images = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
labels = torch.tensor(digits.target)[order]


def train(model: nn.Module, log: TrainingLog) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3)
    for step in range(log.start_step, STEPS):
        batch = torch.randint(1000, (60,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        log.step()
        if (step + 1) % 20 == 0:
            log.accuracy(accuracy(model))


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    return 100 * (model(images[1000:]).argmax(1) == labels[1000:]).float().mean().item()


torch.manual_seed(0)
network = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))

lottery = LotteryTicket(
    network, train, fraction=0.5 if SHORT else 0.3, rounds=ROUNDS, controls=["reinitialised", "random mask"]
)
print(lottery.run(progress=True))

# By layer: weights of wide layers begin smaller, so among all layers at once nearly all channels of one would go.
channels = LotteryTicket(
    network, train, fraction=0.5, rounds=1, scope="layer", structure="channel", example_inputs=images[:2]
)
channels.run()
ticket = channels.ticket(1)
small = ChannelStructure(network, images[:2]).shrink(ticket, channels.masks(1))
count = sum(parameter.numel() for parameter in small.parameters())
total = sum(parameter.numel() for parameter in network.parameters())
print(f"Half of the channels: {count} of {total} parameters, accuracy {accuracy(small):.1f} %, in smaller layers:")
print(small)
