"""What GradInit is tried with: optimizers, and bounds of the gradient norm that are met never or always."""

from __future__ import annotations

OPTIMIZERS = ["sgd", "adam"]
NEVER_MET, ALWAYS_MET = 1e-9, 1e9
