"""A callback of Lightning that converts the module that is trained. Needs the extra ``lightning``."""

import importlib.util

if importlib.util.find_spec("lightning") is None:
    raise ImportError("momentumnet.lightning needs lightning, which is missing: pip install momentumnet[lightning]")

from momentumnet.lightning.callback import MomentumConversion

__all__ = ["MomentumConversion"]
