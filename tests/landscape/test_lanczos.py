"""Band Lanczos against dense eigenvalues of symmetric matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from momentumnet.errors import MomentumNetError
from momentumnet.landscape import lanczos
from momentumnet.landscape.lanczos import largest_eigenvalues


def matrix_of(eigenvalues: Tensor) -> Tensor:
    axes = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues)).double())[0]
    return axes @ torch.diag(eigenvalues.double()) @ axes.T


def found(matrix: Tensor, count: int, *, iterations: int = 1000, tolerance: float = 1e-9) -> lanczos.RitzValues:
    torch.manual_seed(1)
    starts = [torch.randn(len(matrix), dtype=matrix.dtype) for _ in range(count)]
    return largest_eigenvalues(lambda vector: matrix @ vector, starts, iterations=iterations, tolerance=tolerance)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("slice_size", [16, 1000])
def test_dense(count: int, slice_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanczos, "_SLICE", slice_size)
    torch.manual_seed(0)
    matrix = torch.randn(90, 90).double()
    matrix = matrix + matrix.T
    result = found(matrix, count)
    torch.testing.assert_close(result.values, torch.linalg.eigvalsh(matrix).flip(0)[:count], rtol=1e-9, atol=0)
    assert result.converged
    assert result.products <= (60 if count == 1 else 90)


def test_each_eigenvalue_as_often_as_the_matrix_has_it() -> None:
    torch.manual_seed(0)
    matrix = matrix_of(torch.tensor([5.0, 5, 5, 4, 4, -9, *torch.linspace(0, 3, 40)]))
    assert found(matrix, 5).values.tolist() == pytest.approx([5, 5, 5, 4, 4])


@pytest.mark.parametrize("value", [0.0, 2.0, -3.0])
def test_multiple_of_the_identity(value: float) -> None:
    """Every vector is an eigenvector: the basis cannot grow."""
    result = found(value * torch.eye(8).double(), 3)
    assert result.values.tolist() == pytest.approx([value] * 3)
    assert (result.converged, result.products) == (True, 3)


def test_a_subspace_that_is_left_by_no_product() -> None:
    """Two eigenvalues and three starting vectors span six dimensions; what rounding leaves is no seventh."""
    torch.manual_seed(0)
    matrix, starts = matrix_of(torch.tensor([5.0] * 10 + [3.0] * 10)), [torch.randn(20).double() for _ in range(3)]
    kept = [start.clone() for start in starts]
    run = lanczos.BandLanczos(lambda vector: matrix @ vector, starts)
    for _ in range(6):
        run.step()
    values, residuals = run.ritz(6)
    assert values.tolist() == pytest.approx([5, 5, 5, 3, 3, 3])
    assert residuals.tolist() == [0] * 6
    assert all(torch.equal(start, before) for start, before in zip(starts, kept, strict=True))


def test_an_eigenvalue_of_zero() -> None:
    """No residual is a small share of it; below rounding is enough."""
    torch.manual_seed(0)
    result = found(matrix_of(torch.tensor([5.0, 0.0, *torch.linspace(-3, -1, 60)])), 2, iterations=55)
    assert result.values.tolist() == pytest.approx([5, 0], abs=1e-12)
    assert result.converged


def test_all_of_them() -> None:
    torch.manual_seed(0)
    matrix = matrix_of(torch.arange(-3.0, 4.0))
    assert found(matrix, 7, iterations=7).values.tolist() == pytest.approx(list(range(3, -4, -1)), abs=1e-12)
    assert found(matrix, 1).values.tolist() == pytest.approx([3])


def test_single_precision() -> None:
    """Clusters and a wide range, in which orthogonality would soon be lost."""
    torch.manual_seed(0)
    matrix = matrix_of(torch.tensor([1e4, 100, 99.9, 99.8, *torch.linspace(-1, 1, 300)])).float()
    result = found(matrix, 4, tolerance=1e-3)
    assert result.values.tolist() == pytest.approx([1e4, 100, 99.9, 99.8], rel=1e-4)
    assert result.converged


def test_long_runs_stay_orthogonal() -> None:
    """Past convergence, Lanczos without reorthogonalisation would find copies of the largest eigenvalue."""
    torch.manual_seed(0)
    values = torch.cat([torch.tensor([1000.0]), torch.linspace(0, 1, 99)])
    matrix = matrix_of(values)
    run = lanczos.BandLanczos(lambda vector: matrix @ vector, [torch.randn(100).double()])
    for _ in range(90):
        run.step()
    top, _ = run.ritz(2)
    assert top.tolist() == pytest.approx([1000, 1], rel=1e-6)


@pytest.mark.parametrize("iterations", [3, 8])
def test_residuals_bound_the_error(iterations: int) -> None:
    torch.manual_seed(0)
    exact = torch.linspace(0, 1, 200).double()
    result = found(matrix_of(exact), 2, iterations=iterations)
    assert (result.converged, result.products) == (False, iterations)
    distances = (exact[None] - result.values[:, None]).abs().amin(1)
    assert (distances <= result.residuals).all()
    assert (result.values < exact.flip(0)[:2]).all()


def test_what_is_not_finite() -> None:
    with pytest.raises(MomentumNetError, match="no second derivative"):
        found(torch.full((3, 3), torch.nan).double(), 1)
