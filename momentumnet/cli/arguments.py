"""What the commands' arguments may be: conversions from text that explain what was expected."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import torch
import torchvision
from torchvision.models import list_models

from momentumnet.command_errors import UsageError
from momentumnet.finetuning import model_sources
from momentumnet.finetuning.data import is_named
from momentumnet.finetuning.model_inputs import DTYPES, Given, InputShape
from momentumnet.finetuning.named_data import NAMED
from momentumnet.planner.machine.budget import DEVICE, LEAST, bytes_of

_FUNCTION = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


def gamma(text: str) -> Fraction:
    """A momentum factor in [0, 1), as a decimal or a fraction: ``0.9``, ``1/8``."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; write for example 0.9 or 1/8") from None
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1): 0 is the original network, at 1 no branch counts")
    return value


def gammas(text: str) -> list[Fraction]:
    """Momentum factors separated by commas: ``0.9,1/8``."""
    return [gamma(part) for part in text.split(",")]


def shape(text: str) -> tuple[int, ...]:
    """A tensor's shape, batch dimension included: ``1,3,224,224`` or ``1x3x224x224``."""
    return tuple(positive(part) for part in text.replace("x", ",").split(","))


def shape_text(shape: Sequence[int]) -> str:
    """A shape as `shape` reads it."""
    return ",".join(str(size) for size in shape)


def model_input(text: str) -> Given:
    """One input of a network as its shape, with its type and its keyword, or a function that returns all inputs.

    ``1x3x224x224``, ``2x16:int64``, ``input_ids=2x16:int64``, ``module:function``.
    """
    if _FUNCTION.fullmatch(text):
        return text
    keyword, equals, rest = text.rpartition("=")
    sizes, colon, dtype = rest.partition(":")
    try:
        found = shape(sizes)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no input ({error}); write for example 2x3x224x224, 2x16:int64, input_ids=2x16:int64 or "
            "module:function"
        ) from None
    if colon and dtype not in DTYPES:
        raise argparse.ArgumentTypeError(f"{dtype!r} in {text!r} is not one of {', '.join(DTYPES)}")
    if equals and not keyword.isidentifier():
        raise argparse.ArgumentTypeError(f"{keyword!r} in {text!r} is no keyword of a function")
    return InputShape(found, DTYPES[dtype] if colon else torch.float32, keyword or None)


def depths(text: str) -> list[int]:
    """Numbers of blocks separated by commas, each at least 2, in ascending order: ``8,16,32``."""
    values = sorted({positive(part) for part in text.split(",")})
    if values[0] < 2:
        raise argparse.ArgumentTypeError(f"{values[0]} block is no stream; the smallest depth is 2")
    return values


def counts(text: str) -> list[int]:
    """Positive integers separated by commas: ``1,2,4``."""
    return [positive(part) for part in text.split(",")]


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = _integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def whole(text: str) -> int:
    """An integer of at least 0."""
    value = _integer(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative, and 0 is the least")
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None


def wholes(text: str) -> list[int]:
    """Integers of at least 0 separated by commas: ``0,2``."""
    return list(dict.fromkeys(whole(part) for part in text.split(",")))


def seed(text: str) -> int:
    """An integer that random generators take, with room for one a step."""
    value = whole(text)
    if value >= 2**62:
        raise argparse.ArgumentTypeError(f"{text} is too large for a seed")
    return value


def share(text: str) -> float:
    """A number between 0 and 1, neither of them."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1; write for example 0.2 for a fifth")
    return value


def share_or_none(text: str) -> float:
    """A number between 0 and 1, 0 itself included."""
    return 0.0 if text.strip() in ("0", "0.0") else share(text)


def frozen(text: str) -> str | int:
    """``backbone``, or a number of modules."""
    return text if text == "backbone" else positive(text)


def byte_count(text: str) -> int:
    """A number of bytes with a unit, as budgets are written in Python: ``512MiB``, ``1.5GiB``, ``4GB``."""
    return _bytes(text, "")


def budget(text: str) -> int | str:
    """A number of bytes with a unit, ``least``, or ``device``."""
    return text if text in (LEAST, DEVICE) else _bytes(text, f", or {LEAST!r} or {DEVICE!r}")


def _bytes(text: str, others: str) -> int:
    found = None
    with suppress(ValueError):
        found = None if text in (LEAST, DEVICE) else bytes_of(text)
    if found is None:
        what = "has no unit" if text.strip().replace(".", "", 1).isdigit() else "is no size"
        raise argparse.ArgumentTypeError(f"{text!r} {what}; write for example 512MiB or 2GiB{others}")
    return found


def autocast_dtype(text: str) -> torch.dtype:
    """A type for autocast: ``bfloat16`` or ``float16``."""
    known = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    if text not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(known)}")
    return known[text]


def learning_rate(text: str) -> float:
    """A positive number."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def learning_rates(text: str) -> list[float]:
    """Positive numbers separated by commas: ``0.1,0.01``."""
    return list(dict.fromkeys(learning_rate(part) for part in text.split(",")))


def radius(text: str) -> float:
    """A finite number, 0 or larger."""
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return value


def radii(text: str) -> list[float]:
    """Radii separated by commas, each once: ``0,0.05``."""
    return list(dict.fromkeys(radius(part) for part in text.split(",")))


def percentage(text: str) -> float:
    """A number of at least 0 and less than 100."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; write for example 20") from None
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{value:g} is not at least 0 and less than 100 percent")
    return value


def percentages(text: str) -> list[float]:
    """Percentages separated by commas, each once: ``0,20``."""
    return list(dict.fromkeys(percentage(part) for part in text.split(",")))


def device(text: str) -> torch.device:
    """A device that this machine has: ``cpu``, ``cuda``, ``cuda:1``."""
    try:
        value = torch.device(text)
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} is not a device that can be used here: {reason}") from None
    return value


def any_model(text: str) -> str:
    """The name of any torchvision model, or of one of those that `own_model` knows."""
    return own_model(text) if model_sources.is_own(text) else _known(text, list_models())


def own_model(text: str) -> str:
    """``timm:NAME``, ``hf:PATH`` or ``module:function``; what they name is looked at later."""
    prefix, _, rest = text.partition(":")
    if not rest:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing behind {prefix}:")
    if prefix not in ("timm", "hf") and not _FUNCTION.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither timm:NAME, hf:PATH nor module:function")
    return text


def classifier(text: str) -> str:
    """The name of a torchvision image classification model, or of one of those that `own_model` knows."""
    if model_sources.is_own(text):
        return own_model(text)
    names = list_models(module=torchvision.models)
    if text not in names and text in list_models():
        raise argparse.ArgumentTypeError(f"{text} is not an image classification model")
    return _known(text, names)


def _known(text: str, names: Sequence[str]) -> str:
    if text in names:
        return text
    close = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "torchvision.models.list_models() lists them all"
    raise argparse.ArgumentTypeError(f"torchvision has no model {text!r}; {hint}")


def data_source(text: str) -> str:
    """``digits``, the name of a data set of torchvision, or an existing folder."""
    if not is_named(text) and not Path(text).is_dir():
        names = ("digits", *NAMED)
        raise argparse.ArgumentTypeError(f"{text!r} is neither a folder nor one of {', '.join(names)}")
    return text


def picture(text: str) -> Path:
    """A file that is yet to be drawn, in a folder that is there."""
    path = Path(text)
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}")
    return path


def is_planned(options: argparse.Namespace) -> bool:
    """Whether ``--budget`` or ``--spare`` has it chosen for each block and module what is recomputed.

    Raises:
        UsageError: both are given: ``--spare`` is a budget of the least that there is, and so many bytes.
    """
    if options.spare and options.budget not in (None, LEAST):
        raise UsageError("--spare is a budget of the least that there is, and so much more; leave out one of the two")
    return options.budget is not None or bool(options.spare)
