"""The largest eigenvalues against those of the whole Hessian."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.errors import MomentumNetError
from momentumnet.landscape import hessian_top_eigenvalues
from tests.init.networks import network, small
from tests.landscape.reference import Quadratic, dense_hessian, itself
from tests.models import Chain, ResidualMLP


def largest(matrix: Tensor, count: int) -> Tensor:
    return torch.linalg.eigvalsh(matrix).flip(0)[:count]


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("name", ["frozen", "group_norm", "embedding", "lstm", "momentum_net"])
def test_networks(name: str, chunk: int | None) -> None:
    """Frozen parameters left out; one parameter under two names; keywords; a reversible network."""
    model, batches = network(name, double=True)
    expected = largest(dense_hessian(model, F.cross_entropy, batches[0]), 3)
    values = hessian_top_eigenvalues(model, F.cross_entropy, batches[0], 3, tolerance=1e-6, chunk=chunk)
    torch.testing.assert_close(values, expected, rtol=1e-8, atol=0)


def residual_network(backward: str | None) -> nn.Module:
    torch.manual_seed(3)
    model = Chain([ResidualMLP(6) for _ in range(4)], width=6).double()
    if backward is None:
        return model
    return mn.convert(model, torch.randn(2, 6).double(), gamma=0.5, backward=backward)


@pytest.mark.parametrize("chunk", [None, 3])
def test_converted(chunk: int | None) -> None:
    """The memory-saving network against the whole Hessian of the network with stored activations."""
    batch = torch.randn(6, 6).double(), torch.randint(4, (6,))
    expected = largest(dense_hessian(residual_network("stored"), F.cross_entropy, batch), 3)
    values = hessian_top_eigenvalues(
        residual_network("reversible"), F.cross_entropy, batch, 3, tolerance=1e-7, chunk=chunk
    )
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=0)
    plain = hessian_top_eigenvalues(residual_network(None), F.cross_entropy, batch, 3)
    assert not torch.allclose(plain, expected, rtol=1e-3)  # another network: the test can tell


def test_single_precision_and_defaults() -> None:
    model, batches = small()
    batch = batches[0]
    expected = largest(dense_hessian(model, F.cross_entropy, batch), 1)
    values = hessian_top_eigenvalues(copy.deepcopy(model).float(), F.cross_entropy, (batch[0].float(), batch[1]))
    assert (values.shape, values.dtype, values.device.type) == ((1,), torch.float64, "cpu")
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("chunk", "passes"), [(None, 1), (3, 12)])
def test_forward_passes(chunk: int | None, passes: int) -> None:
    """The whole batch's graph is kept for all products; that of a chunk is made for each: 2 + 5 * 2 times."""
    model, batches = small()
    calls = []

    def counting(output: Tensor, target: Tensor) -> Tensor:
        calls.append(len(output))
        return F.cross_entropy(output, target)

    with pytest.warns(RuntimeWarning, match="after 5 products"):
        hessian_top_eigenvalues(model, counting, batches[0], iterations=5, tolerance=1e-12, chunk=chunk)
    assert calls == [6 if chunk is None else 3] * passes


def test_algebraically_largest() -> None:
    model = Quadratic(torch.randn(4).double())
    inputs = torch.randn(4).double(), torch.diag(torch.tensor([-100.0, 2, -3, 1])).double()
    assert hessian_top_eigenvalues(model, itself, (inputs, None), 3).tolist() == pytest.approx([2, 1, -3])


def test_linear_loss() -> None:
    values = hessian_top_eigenvalues(nn.Linear(3, 1), lambda y, _: y.sum(), (torch.randn(2, 3), None), 2)
    assert values.tolist() == [0, 0]


def test_modes() -> None:
    """Measured in the mode that the model is in: batch statistics in one, running ones in the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    model(3 * torch.randn(50, 3).double())
    batch = torch.randn(6, 3).double(), torch.randint(2, (6,))
    found = []
    for training in (True, False):
        model.train(training)
        expected = largest(dense_hessian(copy.deepcopy(model), F.cross_entropy, batch), 1)
        found.append(hessian_top_eigenvalues(model, F.cross_entropy, batch, tolerance=1e-6))
        torch.testing.assert_close(found[-1], expected, rtol=1e-8, atol=0)
    assert not torch.allclose(*found, rtol=0.1)


def test_attention() -> None:
    """The fused kernels have no second derivative."""
    model, batches = network("vit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        values = hessian_top_eigenvalues(model, F.cross_entropy, batches[0], iterations=3)
    assert values.isfinite().all()


def test_start_vectors() -> None:
    model, batches = small()
    arguments = (model, F.cross_entropy, batches[0])
    with pytest.warns(RuntimeWarning, match="after 3 products"):
        first = hessian_top_eigenvalues(*arguments, iterations=3)
    with pytest.warns(RuntimeWarning, match=r"residuals [0-9.e-]+ after 3 products.*tolerance=0.001.*Raise iterations"):
        again = hessian_top_eigenvalues(*arguments, iterations=3)
    with pytest.warns(RuntimeWarning, match="lower bounds"):
        other = hessian_top_eigenvalues(*arguments, iterations=3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first < largest(dense_hessian(*arguments), 1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a whole number"),
        ({"k": 90}, "k must be at most the number of trainable parameters, 74, got 90"),
        ({"k": 3, "iterations": 2}, "iterations must be at least k, got iterations=2 and k=3"),
        ({"tolerance": 0.0}, "tolerance must be"),
        ({"chunk": 0}, "chunk must be"),
    ],
)
def test_options(options: dict[str, float], message: str) -> None:
    model, batches = small()
    with pytest.raises(ValueError, match=message):
        hessian_top_eigenvalues(model, F.cross_entropy, batches[0], **options)


def test_parameters_outside_the_graph() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.spare = small()[0], nn.Linear(2, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    half, batch = Half(), small()[1][0]
    with pytest.raises(MomentumNetError, match=r"depend on 2 of the trainable parameters: spare.weight, spare.bias"):
        hessian_top_eigenvalues(half, F.cross_entropy, batch)
    half.spare.requires_grad_(False)
    torch.testing.assert_close(
        hessian_top_eigenvalues(half, F.cross_entropy, batch),
        hessian_top_eigenvalues(half.net, F.cross_entropy, batch),
    )


def test_a_parameter_that_only_some_chunks_use() -> None:
    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.few, self.all = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.few(row) if row > 2 else self.all(row) for row in x])

    batch = torch.tensor([[3.0], [4.0], [1.0], [2.0]]), torch.zeros(4)
    values = hessian_top_eigenvalues(Expert(), F.mse_loss, batch, 2, chunk=2)
    assert values.tolist() == pytest.approx([2 * (9 + 16) / 4, 2 * (1 + 4) / 4])


def test_what_is_not_finite() -> None:
    model, batches = small()
    with pytest.raises(MomentumNetError, match="the loss is inf at the parameters"):
        hessian_top_eigenvalues(model, lambda y, t: y.sum() + torch.inf, batches[0])
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    with pytest.raises(MomentumNetError, match="no second derivative"):
        hessian_top_eigenvalues(model, lambda y, t: y.abs().pow(1.5).sum(), (torch.ones(2, 1), None))
