"""Initialisations for networks of any kind, converted or not."""

from momentumnet.init.report import InitReport

__all__ = ["InitReport"]
