from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from momentumnet.bench.images import load_digits
from momentumnet.bench.lottery.training import Lottery, Recipe
from momentumnet.prune import TrainingLog


def test_part_of_a_course_is_the_rest_of_the_whole() -> None:
    """Without pruning, the training from the weights of epoch 1 sees the batches and rates of the dense one."""
    recipe = Recipe(3, 32, 0.1, 0.5, 1, 1, "weight", "global", None)
    data = load_digits().part(train=64, test=50)
    lottery = Lottery("resnet8", 0, data, recipe, torch.device("cpu"), "kaiming", Path("unused"))
    seen: dict[int, list[tuple[float, torch.Tensor]]] = {}
    for start in (0, 2):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
        inputs: list[torch.Tensor] = []
        model.register_forward_pre_hook(lambda module, args, inputs=inputs: inputs.append(args[0]))
        log = TrainingLog(start_step=start)
        lottery._train(model, log, lambda: None)
        seen[start] = inputs
        assert log.steps == 6
    tail = seen[0][-len(seen[2]) :]
    assert len(seen[2]) < len(seen[0])
    assert all(torch.equal(one, other) for one, other in zip(seen[2], tail, strict=True))
