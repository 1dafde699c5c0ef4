"""Checkpoints of the command line's training runs: the last one, and the one before it should that be damaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from momentumnet.command_errors import UsageError
from momentumnet.errors import CheckpointError
from momentumnet.files import checkpoint_file
from momentumnet.listing import listed
from momentumnet.resume import load_training_state

_NEWER = frozenset({"held_out"})


def save(path: Path, settings: Mapping[str, object], content: Mapping[str, Any]) -> None:
    """Writes a checkpoint; the one before it is kept beside it.

    Raises:
        StorageError: It cannot be written; the one that was there is there still.
    """
    checkpoint_file.save(path, settings, content, keep_previous=True)


def load(path: Path, settings: Mapping[str, object], *, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Reads the last checkpoint that is good; None where none was written yet.

    Args:
        path: Where it is; the one before it lies beside it.
        settings: What makes the run the one that it is.
        say: Takes a line about a damaged one that is passed over, and put aside.

    Raises:
        UsageError: All of them are damaged, or the good one belongs to a run with other settings.
    """
    content, problem = _last_good(path, settings, say=say)
    if content is not None and problem:  # or else the next one that is written would put it in place of the good one
        path.replace(path.with_suffix(f".damaged{path.suffix}"))
    return content


def check(path: Path, settings: Mapping[str, object], model: nn.Module) -> None:
    """Sees that `load` will read a checkpoint that fits a model, or that none was written yet; nothing is changed.

    Raises:
        UsageError: as `load` does, or the model has other weights than the one that was trained.
    """
    content, _ = _last_good(path, settings, say=lambda line: None)
    if content is None:
        return
    there, now = (
        {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
        for state in (content["model"], model.state_dict())
    )
    different = [
        f"{name} {there.get(name, 'not')} there, {now.get(name, 'not')} now"
        for name in {**there, **now}
        if there.get(name) != now.get(name)
    ]
    if different:
        raise _unusable(f"{path} is of a network with other weights: {listed(different, 3)}")


def _last_good(
    path: Path, settings: Mapping[str, object], *, say: Callable[[str], None]
) -> tuple[dict[str, Any] | None, str]:
    """The last checkpoint that is good, and what is wrong with the one behind it; raises what `load` does."""
    there = [file for file in (path, checkpoint_file.previous(path)) if file.exists()]
    problem = ""
    for file in there:
        try:
            content = checkpoint_file.read(file)
        except CheckpointError as error:
            problem = problem or str(error)
            continue
        if problem:
            say(f"{problem}; going on from the checkpoint before it, {file}")
        try:
            checkpoint_file.check_settings(file, _as_far_as(content["settings"], settings), settings)
        except CheckpointError as error:
            raise _unusable(str(error)) from error
        return content, problem
    if problem:
        raise _unusable(problem)
    return None, ""


def _as_far_as(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint, with those of now where a run may go on with others: more epochs.

    And with those that earlier versions did not write down, if it has not: which files were held out.
    """
    found = {**{name: settings[name] for name in _NEWER & settings.keys()}, **saved}
    return {**found, "epochs": max(saved["epochs"], settings["epochs"])} if "epochs" in settings else found


def load_streams(path: Path, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Gives the model's streams the training state that a checkpoint holds.

    Raises:
        UsageError: It belongs to other streams.
    """
    try:
        load_training_state(model, state)
    except CheckpointError as error:
        raise _unusable(f"{path} cannot be resumed: {error}") from error


def _unusable(reason: str) -> UsageError:
    return UsageError(f"{reason}; start without --resume, or choose another --output")
