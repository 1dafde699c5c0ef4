"""Converted models of transformers: loaded as they were trained, trained by its ``Trainer``, exported to stock classes.

Needs the extra ``hf``. Plain ``Trainer`` trains converted models as they are; `StreamsCallback` is for trainings that
are resumed to the bit, and for adapters; `GammaCallback` changes gamma over its steps.
"""

import importlib.util

if importlib.util.find_spec("transformers") is None:
    raise ImportError("momentumnet.hf needs transformers, which is not installed: pip install momentumnet[hf]")

from momentumnet.hf.annealing import GammaCallback
from momentumnet.hf.loading import from_pretrained
from momentumnet.hf.stock import StockReport, export
from momentumnet.hf.training import StreamsCallback

__all__ = ["GammaCallback", "StockReport", "StreamsCallback", "export", "from_pretrained"]
