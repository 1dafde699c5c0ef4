"""Convert torchvision's ResNet-50, take one training step, and see the memory that it needs, before and after."""

import argparse

import torch
import torchvision

import momentumnet as mn

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--short", action="store_true", help="on smaller images")
size = 32 if parser.parse_args().short else 96

model = torchvision.models.resnet50()  # weights="DEFAULT" for the pretrained network
images, labels = torch.randn(16, 3, size, size), torch.arange(16)
converted = mn.convert(model, images[:2], others="checkpoint")  # same class and state_dict keys; `model` stays as it is


def step(network: torch.nn.Module) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad()


print("original: ", mn.measure_memory(lambda: step(model)))
print("converted:", mn.measure_memory(lambda: step(converted)))
