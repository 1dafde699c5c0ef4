"""Convert a torchvision network, take one training step, and see the memory that it needs, before and after."""

import torch
import torchvision

import momentumnet as mn

model = torchvision.models.resnet50()  # weights="DEFAULT" for the pretrained network
images = torch.randn(4, 3, 64, 64)
converted = mn.convert(model, images)  # same class, same state_dict keys; the original stays as it is


def step(network: torch.nn.Module) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    torch.nn.functional.cross_entropy(network(images), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()


print("original: ", mn.measure_memory(lambda: step(model)))
print("converted:", mn.measure_memory(lambda: step(converted)))
