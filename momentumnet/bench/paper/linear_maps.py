"""Which linear maps a ResNet and a Momentum ResNet represent whose layers share one linear residual function."""

from __future__ import annotations

import cmath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

TOLERANCE = 1e-9  # to which eigenvalues are equal, or real
SAMPLES = 2001


def limit_factor(mu: complex, epsilon: float) -> complex:
    """By how much the second-order ODE multiplies an eigenvector from time 0 to 1.

    The ODE is ``epsilon x'' + x' = Theta x`` from rest, ``x'(0) = 0``, with ``Theta x = mu x``: the limit of a Momentum
    ResNet of many layers (Sander, Ablin, Blondel, Peyre, ICML 2021). Its two exponents are ``-a + d`` and ``-a - d``
    with ``a = 1 / (2 epsilon)`` and ``d = sqrt(1 + 4 epsilon mu) / (2 epsilon)``, so::

        x(1) / x(0) = exp(-a) (cosh d + a sinh d / d)

    At epsilon 0 it is the first-order ODE of a ResNet, ``exp(mu)``.
    """
    if epsilon == 0:
        return cmath.exp(mu)
    a = 1 / (2 * epsilon)
    d = cmath.sqrt(1 + 4 * epsilon * mu) / (2 * epsilon)
    ratio = cmath.sinh(d) / d if abs(d) > 1e-6 else 1 + d * d / 6
    return cmath.exp(-a) * (cmath.cosh(d) + a * ratio)


def layers_factor(mu: ArrayLike, depth: int, gamma: float) -> NDArray[Any]:
    """The same after ``depth`` layers with ``f(x) = Theta x / depth``: a polynomial in mu of degree ``depth``.

    With ``gamma = 1 - 1 / (epsilon depth)`` it tends to `limit_factor` as the depth grows; a ResNet's is
    ``(1 + mu / depth)**depth``.
    """
    mu = np.asarray(mu)
    x, v = np.ones_like(mu), np.zeros_like(mu)
    for _ in range(depth):
        v = gamma * v + (1 - gamma) * mu / depth * x
        x = x + v
    return x


def momentum_of(epsilon: float, depth: int) -> float:
    """The momentum factor whose layers are steps of 1 / depth of the ODE with ``epsilon``."""
    return 0.0 if epsilon == 0 else 1 - 1 / (epsilon * depth)


def lowest_factor(epsilon: float, depth: int | None = None) -> float:
    """The least factor along an eigenvector with a real eigenvalue: the paper's lambda_epsilon.

    It lies above -1 and comes near it as epsilon grows. A ResNet's is 0, which it does not reach.

    Args:
        epsilon: Of the ODE, 0 for a ResNet.
        depth: Of the network, an even number; None for the ODE. Of a network only the first minimum is looked at, as
            far as the ODE's goes: where layers are long steps, the polynomial leaves the ODE.
    """
    if epsilon == 0:
        return 0.0
    # The minimum has frequency w a little above pi, where mu = -(1 + 4 epsilon^2 w^2) / (4 epsilon).
    low, high = (-(1 + (2 * epsilon * w) ** 2) / (4 * epsilon) for w in (1.7 * np.pi, 0.5 * np.pi))
    for _ in range(8):
        mu = np.linspace(low, high, SAMPLES)
        if depth is None:
            factors = np.array([limit_factor(value, epsilon).real for value in mu])
        else:
            factors = layers_factor(mu, depth, momentum_of(epsilon, depth))
        best, step = int(factors.argmin()), mu[1] - mu[0]
        low, high = mu[best] - step, mu[best] + step
    return float(factors[best])


def representable(matrix: ArrayLike, lowest: float) -> bool:
    """Whether a diagonalisable real map is represented, by its eigenvalues.

    The map of the second-order ODE is represented if and only if each real eigenvalue below ``lowest`` has an even
    multiplicity (Sander et al., ICML 2021, the theorem on linear residual functions): such eigenvalues come from pairs
    of conjugate ones of Theta. With ``lowest`` 0 it is the condition for a real logarithm, hence the first-order
    ODE's (Culver, *On the existence and uniqueness of the real logarithm of a matrix*, 1966), and for a real square
    root, hence that of a ResNet of an even number of layers.

    Args:
        matrix: The map, without the eigenvalue 0.
        lowest: `lowest_factor`.
    """
    eigenvalues = np.linalg.eigvals(np.asarray(matrix, dtype=float))
    left = sorted(value.real for value in eigenvalues if abs(value.imag) < TOLERANCE and value.real < lowest)
    while left:
        same = [value for value in left if value - left[0] < TOLERANCE]
        if len(same) % 2:
            return False
        left = left[len(same) :]
    return True
