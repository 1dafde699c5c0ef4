"""A user's program, for mypy and pyright, which .ci/run shows it to: what is asserted here the package promises.

That the types reach users is a matter of ``py.typed`` in the wheel, which .ci/run looks for.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import momentumnet as mn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.encoder(x)
        return output


def batches() -> Iterator[Tensor]:
    for _ in range(2):
        yield torch.randn(2, 5, 16)


model, x = Network(), torch.randn(2, 5, 16)

converted = assert_type(mn.convert(model, x, gamma=1 / 8), Network)
assert_type(mn.revert(converted), Network)
assert_type(mn.plan(model, x, budget="least"), mn.TrainingPlan)
assert_type(mn.plan(model, x).saved_after, int)
assert_type(mn.largest_batch(model, lambda size: torch.randn(size, 5, 16), "4MiB"), int)
assert_type(mn.find_streams(model, x), list[mn.ResidualStream])
comparison = assert_type(mn.compare_outputs(model, converted, batches()), mn.OutputComparison)
assert_type(comparison.agreement, float | None)
assert_type(mn.measure_memory(lambda: converted(x).sum().backward()), mn.MemoryReport)
optimizer = assert_type(mn.optim.SAM(model.parameters(), torch.optim.SGD, lr=0.1), mn.optim.SAM)
masks = assert_type(mn.prune.magnitude_masks(model, fraction=0.5), dict[str, Tensor])

mn.convert(model, x, gama=1 / 8)  # type: ignore[call-arg]  # a keyword that is not there is seen
