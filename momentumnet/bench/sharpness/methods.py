"""The trainings that ``bench sharpness`` compares."""

from __future__ import annotations

from dataclasses import dataclass

from momentumnet.bench.trainings import optimizers


@dataclass(frozen=True)
class Recipe(optimizers.Recipe):
    """How the networks are trained, and how closely they are looked at.

    Attributes:
        noise: Share of wrong training labels (%).
        gamma: Momentum factor of the converted networks, as a decimal or a fraction.
        measurements: How many times in a training the landscape is looked at.
        probes: Training images on which it is looked at.
        ascents: From how many points the highest one of the ball is looked for.
    """

    noise: float
    gamma: str
    measurements: int
    probes: int
    ascents: int


@dataclass(frozen=True)
class Method(optimizers.Method):
    """An optimizer, and whether it trains a Momentum ResNet.

    Attributes:
        converted: Whether the network is converted before it is trained.
    """

    converted: bool = False

    @property
    def has_radius(self) -> bool:
        """Whether rho has a say in it."""
        return self.make is optimizers.sam


SAM = "sam"  # the method that is trained with several rho
METHODS = {
    "sgd": Method(optimizers.sgd, passes=1),
    "sgd_2x": Method(optimizers.sgd, passes=1, longer=2),
    "extragradient": Method(optimizers.extragradient, passes=2),
    SAM: Method(optimizers.sam, passes=2),
    "sgd_converted": Method(optimizers.sgd, passes=1, converted=True),
    "sam_converted": Method(optimizers.sam, passes=2, converted=True),
}
