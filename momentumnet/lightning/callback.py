"""The callback: converts when a fit begins, and keeps in checkpoints what makes a resumed one the same to the bit."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from momentumnet.conversion.conversion import convert
from momentumnet.conversion.planning import plan
from momentumnet.conversion.reversion import revert
from momentumnet.description.description import describe
from momentumnet.description.model_config import function_of, warn_of_another
from momentumnet.errors import ConversionError
from momentumnet.planner.machine.budget import PRESENT
from momentumnet.resume import load_training_state, training_state
from momentumnet.streams.blocks.converted import is_converted

logger = logging.getLogger("momentumnet")

_KEY = "momentumnet"
_OWN = frozenset({"example_inputs", "inplace", "plan", "like"})


class MomentumConversion(Callback):
    """Converts the module in place when a run begins: behind ``configure_model``, before its optimizers are made.

    A module that is converted already stays as it is. Checkpoints get an entry ``momentumnet`` with the module's
    description and what its streams have learned, which a resumed fit takes up. On CUDA the peak of allocated bytes is
    logged with each epoch of training, as ``peak_memory_mib``.

    Args:
        example_inputs: of the module's forward, as `convert` takes them. None for its ``example_input_array``.
        options: further options of `convert`: ``gamma``, ``budget``, ``streams``, ``others``, ``spare``, ... With a
            ``budget`` the plan that was made for it is told to the log (not with ``replan="auto"``). Where the trainer
            accumulates the gradients of several batches, a budget or ``spare`` is planned with ``gradients="present"``,
            unless you say otherwise; say so yourself in manual optimization.

    Raises:
        TypeError: an option that `convert` does not have, or that the callback takes care of itself.
        ConversionError: when a run begins: there are no example inputs, or as `convert` raises it.

    Example:
        >>> import momentumnet as mn
        >>> conversion = mn.lightning.MomentumConversion(torch.randn(2, 3, 64, 64), budget="2GiB")
        >>> trainer = Trainer(callbacks=[conversion], accelerator="cpu", logger=False, enable_checkpointing=False)
    """

    def __init__(self, example_inputs: Any = None, **options: Any) -> None:
        unknown = sorted(options.keys() - inspect.signature(convert).parameters.keys() | options.keys() & _OWN)
        if unknown:
            raise TypeError(f"MomentumConversion takes the options of momentumnet.convert; not {', '.join(unknown)}")
        self._example, self._options = example_inputs, options
        self._trained: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Convert, or have it done as soon as ``configure_model`` has made the layers."""
        accumulates = stage == "fit" and _accumulates(trainer)
        if type(pl_module).configure_model is LightningModule.configure_model:
            self._convert(pl_module, accumulates)
            return
        configure = pl_module.configure_model

        def configure_and_convert() -> None:
            configure()
            self._convert(pl_module, accumulates)

        pl_module.configure_model = configure_and_convert  # type: ignore[method-assign]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module's methods as they were."""
        vars(pl_module).pop("configure_model", None)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compare with a checkpoint: by now a schedule of gamma that is resumed has set it."""
        self._compare(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the peak of the epoch."""
        peak = _peak_bytes(pl_module.device)
        if peak is not None:
            pl_module.log("peak_memory_mib", peak / 2**20)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what the module is beside its class."""
        checkpoint[_KEY] = {"description": describe(pl_module), "streams": training_state(pl_module)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up what the streams had learned, and the function that was trained where a plan chose it."""
        if _KEY not in checkpoint:
            return
        saved = checkpoint[_KEY]["description"]
        found = describe(pl_module)
        if function_of(found) != function_of(saved):
            if self._asked():
                self._trained = saved
                if not trainer.training:  # no step comes
                    self._compare(pl_module)
            else:
                with _apart_from_its_trainer(pl_module):
                    convert(revert(pl_module, inplace=True), like=saved, inplace=True)
        load_training_state(pl_module, checkpoint[_KEY]["streams"])

    def _asked(self) -> list[str]:
        return [name for name in _OF_THE_RULE if self._options.get(name) is not None]

    def _compare(self, module: LightningModule) -> None:
        """Warn, once, where the module computes something else than the one of the checkpoint."""
        trained, self._trained = self._trained, None
        if trained is None:
            return
        found = describe(module)
        if function_of(found) != function_of(trained):
            asked = " and ".join(self._asked())
            advice = f"Leave out {asked} of MomentumConversion to go on with the one that was trained"
            warn_of_another("the checkpoint", trained, found, advice=advice)

    def _convert(self, module: LightningModule, accumulates: bool) -> None:
        if is_converted(module):
            return
        options = self._options
        example = module.example_input_array if self._example is None else self._example
        if example is None and "streams" not in options:
            raise ConversionError(
                f"there is nothing to find the streams of {type(module).__name__} with: give MomentumConversion "
                "example inputs, set the module's example_input_array, or name streams=[...]"
            )
        if accumulates and (options.get("budget") is not None or options.get("spare")):
            options = {"gradients": PRESENT, **options}
        with _apart_from_its_trainer(module):
            if options.get("budget") is None or options.keys() & _NOT_OF_A_PLAN:
                convert(module, example, inplace=True, **options)
                return
            made = _planned(module, example, options)
            logger.info("%s", made)
            kept = {name: value for name, value in options.items() if name in _BESIDE_A_PLAN}
            convert(module, plan=made, inplace=True, **kept)


_OF_THE_RULE = ("gamma", "coupling")  # options by which a user says what moves the streams
_BESIDE_A_PLAN = frozenset({"final_velocity", "initial_velocity"})
# Options of `convert` that `plan` does not have.
_NOT_OF_A_PLAN = frozenset({"replan", "coupling"})


def _planned(module: LightningModule, example: Any, options: Mapping[str, Any]) -> Any:
    return plan(module, example, **{name: value for name, value in options.items() if name not in _BESIDE_A_PLAN})


def _accumulates(trainer: Trainer) -> bool:
    """Whether the gradients of several batches make a step, now or from some epoch on."""
    schedulers = [each for each in trainer.callbacks if isinstance(each, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    return trainer.accumulate_grad_batches > 1 or any(s.going_to_accumulate_grad_batches() for s in schedulers)


def _peak_bytes(device: torch.device) -> int | None:
    """The most bytes that were allocated since the epoch began; None where the allocator does not tell."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


@contextmanager
def _apart_from_its_trainer(module: LightningModule) -> Iterator[None]:
    """A trace leaves a module as it was found, with all that hangs on it: not with a trainer and its loops."""
    trainer = module._trainer
    module.trainer = None
    try:
        yield
    finally:
        module.trainer = trainer
