"""What the loss looks like around a network's parameters: sharpness, curvature, lines and planes."""

from momentumnet.landscape.directions import filter_normalised_direction
from momentumnet.landscape.hessian import hessian_top_eigenvalues
from momentumnet.landscape.sharpness import sharpness
from momentumnet.landscape.slices import LossLine, LossPlane, loss_along, loss_plane

__all__ = [
    "LossLine",
    "LossPlane",
    "filter_normalised_direction",
    "hessian_top_eigenvalues",
    "loss_along",
    "loss_plane",
    "sharpness",
]
