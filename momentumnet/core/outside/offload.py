"""Offload of module calls: their saved tensors go to host memory, and come back before their backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from momentumnet.core.tensors.inference import gradients_on
from momentumnet.core.tensors.transforms import at_work
from momentumnet.recompute.saved.offloaded_tensors import OffloadedTensors, leave_open, settle


class Offload:
    """Calls the modules of one unit so that what they save for backward is moved to host memory meanwhile.

    Gradients are those of plain training, to the bit: the very bytes come back. A backward that is differentiated again
    (``create_graph``) is right as well; what came back for a backward with ``retain_graph`` stays on the device until
    its graph is gone. On devices that compute in host memory, and where a CUDA graph is recorded, nothing is moved.

    Args:
        names: the modules, in call order.
        settled_behind: name of the module behind whose call the device lets go of what has left, and where backward
            begins to bring it back; None if there is none.
        input_stays: whether others hold what the first module is given anyway.
    """

    def __init__(self, names: Sequence[str], settled_behind: str | None, *, input_stays: bool = False) -> None:
        self.names, self.settled_behind, self.input_stays = tuple(names), settled_behind, input_stays

    def call(self, name: str, module: nn.Module, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call ``function(*args, **kwargs)``, the call of the module ``name``, and return its output.

        Raises:
            ReconstructionError: in backward, a saved tensor was changed in place since.
        """
        if not gradients_on() or at_work() is not None:
            return function(*args, **kwargs)
        is_first = name == self.names[0]
        if is_first:
            settle(only_of=self)  # of a pass that has not come to the module behind
        given = _tensors((args, kwargs)) if is_first and self.input_stays else ()
        saved = OffloadedTensors(name, self, [*module.parameters(), *module.buffers(), *given])
        with saved.moving():
            output = function(*args, **kwargs)
        leave_open(saved)
        return output


class Stored:
    """Calls a module as it is: its place among the calls is all that matters."""

    def call(
        self, name: str, module: nn.Module, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call ``function(*args, **kwargs)`` and return its output."""
        return function(*args, **kwargs)


def _tensors(values: Any) -> Iterable[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))
