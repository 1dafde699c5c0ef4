"""The largest eigenvalues of a symmetric matrix that is known by its products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from momentumnet.errors import MomentumNetError

# Elements of each vector that are taken at a time.
_SLICE = 2**16


@dataclass(frozen=True)
class RitzValues:
    """Approximate eigenvalues.

    Attributes:
        values: float64 on the CPU, descending.
        residuals: ``||H y - value y||`` for each, y being its unit Ritz vector: an eigenvalue is at most that far away.
        converged: whether all residuals are below the tolerance.
        products: how many products were taken.
    """

    values: Tensor
    residuals: Tensor
    converged: bool
    products: int


class BandLanczos:
    """Lanczos with a block of starting vectors (Ruhe 1979), each new vector made orthogonal to all earlier ones.

    One starting vector finds each eigenvalue once, however often the matrix has it; a block of k finds it up to k
    times. With k = 1 this is Lanczos' method and the projected matrix is tridiagonal; otherwise it is a band of 2 k + 1
    diagonals. It is summed and kept in float64, and so is the vector that is being made orthogonal.

    Args:
        times: the product of the matrix with a vector.
        starts: linearly independent vectors.
    """

    def __init__(self, times: Callable[[Tensor], Tensor], starts: Sequence[Tensor]) -> None:
        self._times, self._size = times, starts[0].numel()
        self._dtype, self._scale = starts[0].dtype, 0.0
        self._basis: list[Tensor] = []
        self._columns: list[Tensor] = []
        for start in starts:
            vector, _ = self._orthogonal(start.to(torch.float64, copy=True))
            self._append(vector, float(torch.linalg.vector_norm(vector)))

    @property
    def rounding(self) -> float:
        """Lengths and residuals below this are rounding."""
        return 10 * torch.finfo(self._dtype).eps * self._scale

    def step(self) -> None:
        """One product more.

        Raises:
            MomentumNetError: it is not finite.
        """
        product = self._times(self._basis[len(self._columns)]).double()
        norm = float(torch.linalg.vector_norm(product))
        if not norm < float("inf"):
            raise MomentumNetError(
                "a product of the Hessian with a vector is NaN or infinite; the loss has no second derivative there "
                "(a square root or a norm at zero?), or the model's dtype overflows"
            )
        self._scale = max(self._scale, norm)
        rest, coefficients = self._orthogonal(product)
        length = float(torch.linalg.vector_norm(rest))
        if length > self.rounding:
            self._append(rest, length)
            coefficients.append(length)
        self._columns.append(torch.tensor(coefficients, dtype=torch.float64))

    def ritz(self, count: int) -> tuple[Tensor, Tensor]:
        """The largest eigenvalues of the projected matrix, descending, and their residuals.

        Where the basis spans an invariant subspace, nothing of the band is left below, and the residuals are 0.
        """
        processed = len(self._columns)
        band = torch.zeros(len(self._basis), processed, dtype=torch.float64)
        for index, column in enumerate(self._columns):
            band[: len(column), index] = column
        square, below = band[:processed], band[processed:]
        values, vectors = torch.linalg.eigh((square + square.T) / 2)
        values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
        return values, torch.linalg.vector_norm(below @ vectors, dim=0)

    def _orthogonal(self, vector: Tensor) -> tuple[Tensor, list[float]]:
        """The vector without its part in the span of the basis, and the coefficients of that part. In place."""
        coefficients = torch.zeros(len(self._basis), dtype=torch.float64, device=vector.device)
        for _ in range(2 if self._basis else 0):  # the first pass may leave rounding errors as large as the rest
            shares = torch.zeros_like(coefficients)
            for part, rows in self._slices(vector):
                shares += rows @ part.to(rows.dtype)
            for part, rows in self._slices(vector):
                part -= shares.to(rows.dtype) @ rows
            coefficients += shares
        return vector, coefficients.tolist()

    def _slices(self, vector: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Parts of the vector with those of the basis: few enough numbers at a time for the cache."""
        for first in range(0, self._size, _SLICE):
            rows = torch.stack([known[first : first + _SLICE] for known in self._basis])
            yield vector[first : first + _SLICE], rows

    def _append(self, vector: Tensor, length: float) -> None:
        self._basis.append((vector / length).to(self._dtype))


def largest_eigenvalues(
    times: Callable[[Tensor], Tensor], starts: Sequence[Tensor], *, iterations: int, tolerance: float
) -> RitzValues:
    """The algebraically largest eigenvalues, as many as there are starting vectors.

    Ends when each residual is at most ``tolerance`` times its value (or rounding), or after ``iterations`` products.
    """
    count = len(starts)
    lanczos = BandLanczos(times, starts)
    values = residuals = torch.zeros(0, dtype=torch.float64)
    converged, products = False, 0
    while not converged and products < iterations:
        lanczos.step()
        products += 1
        if products >= count:
            values, residuals = lanczos.ritz(count)
            bounds = (tolerance * values.abs()).clamp(min=lanczos.rounding)
            converged = bool((residuals <= bounds).all())
    return RitzValues(values, residuals, converged, products)
