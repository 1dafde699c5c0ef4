"""Sharpness and curvature of the loss around a network's parameters."""

from momentumnet.landscape.hessian import hessian_top_eigenvalues
from momentumnet.landscape.sharpness import sharpness

__all__ = ["hessian_top_eigenvalues", "sharpness"]
