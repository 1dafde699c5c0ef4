"""What a trace holds: the calls of one forward pass as a tree, and the storages that autograd kept.

Tensors are known by the identity of their Python objects, so every tensor that may belong to a stream is kept alive
until the :class:`Trace` is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, Node

Key = tuple[int, int]
# An argument of a call: the call's number in the pass, and the position or keyword.
Place = tuple[int, int | str]


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A tensor as it entered or left a module call.

    ``key`` is its identity and its version at that moment; it means something only while ``tensor`` is kept alive.
    ``base_edge`` is where the gradient of what it was a view of went then: a write to a view gives the view another
    node, from which the way back leads to the base alone. ``argument`` is the position or keyword in which it entered,
    ``magnitude`` its largest finite absolute value (0 for layers, which are no blocks).
    """

    tensor: torch.Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    key: Key
    edge: GradientEdge | None
    base_edge: GradientEdge | None = None
    argument: int | str | None = None
    magnitude: float = 0.0

    def is_like(self, other: Endpoint) -> bool:
        """Whether one state can carry both: they are of one shape and type, and on one device."""
        return (self.shape, self.dtype, self.device) == (other.shape, other.dtype, other.device)


@dataclass(eq=False)
class Call:
    """One call of one module.

    ``inputs`` holds the tensors that can be the stream: floating-point arguments, in order. ``keeps_shape`` says that
    one of them is like the output; then ``inputs`` holds only such tensors, and the endpoints keep
    them alive. ``first_argument`` is where the first of them all stood, whatever its shape.
    ``refusal`` says why a stream cannot carry that one, such as a complex one; then there are no ``inputs``.
    ``beside`` are the floating-point tensors that it returned beside the stream's, by their places in the output, where
    one of the arguments, which are ``taken``, is like them; ``rewritten`` says which of those arguments
    it overwrote.
    ``saved`` are the storages that autograd kept for it, ``saved_at`` how many calls had begun by then, ``saved_by`` by
    their numbers the nodes that kept them, ``entered`` those of its arguments that it or what ran before kept, or that
    the model was given,
    ``handed`` those of several that nobody had kept.
    ``alone`` says that one tensor is all that it takes, ``returns_alone`` that one is all that it returns,
    ``overwritten`` that it overwrote one that can be the stream, ``spoils`` any of its arguments.
    ``made`` is the storage of what it returned, if autograd has kept that.
    ``first`` and ``behind`` are the numbers that autograd gave to the first node of the call, and to the one after its
    last.
    """

    name: str
    module: nn.Module | None
    index: int
    children: list[Call] = field(default_factory=list)
    inputs: list[Endpoint] = field(default_factory=list)
    first_argument: int | str | None = None
    side_nodes: set[Node] = field(default_factory=set)
    output: Endpoint | None = None
    beside: list[tuple[int, Endpoint]] = field(default_factory=list)
    taken: list[Endpoint] = field(default_factory=list)
    rewritten: set[int | str | None] = field(default_factory=set)
    keeps_shape: bool = False
    takes_tensor: bool = False
    alone: bool = False
    refusal: str = ""
    returns_tensor: bool = False
    returns_alone: bool = False
    recorded_gradients: bool = True
    overwritten: bool = False
    spoils: bool = False
    spread: float = 1.0
    saved: list[int] = field(default_factory=list)
    saved_at: list[int] = field(default_factory=list)
    saved_by: list[int] = field(default_factory=list)
    entered: set[int] = field(default_factory=set)
    handed: dict[int, torch.UntypedStorage] = field(default_factory=dict)
    first: int = 0
    behind: int = 0
    made: int | None = None

    @property
    def composite(self) -> bool:
        """Whether the module has children of its own."""
        return self.module is not None and next(self.module.children(), None) is not None

    @property
    def plain_layer(self) -> bool:
        """Whether the module is a childless layer of ``torch.nn``, which cannot be a residual block."""
        return not self.composite and type(self.module).__module__.startswith("torch.nn.modules.")

    @property
    def plain_container(self) -> bool:
        """Whether the module only calls its children one after the other."""
        return isinstance(self.module, nn.Sequential) and type(self.module).forward is nn.Sequential.forward

    def walk(self) -> Iterator[Call]:
        """This call and all calls inside it, in call order."""
        pending = [self]
        while pending:
            call = pending.pop()
            yield call
            pending.extend(reversed(call.children))


@dataclass(eq=False)
class Trace:
    """The calls of one forward pass, below a root frame without a module, and the storages that autograd kept.

    ``returned`` are the tensors of the model's output, in order; ``attached`` is the leaf by which tensors without a
    gradient were given one; ``given`` are the storages of what the model was given, as far as they are
    known; ``by_forward`` are the names of modules that are called by their ``forward``; ``cached`` are the tensors in
    key-value caches among the output.
    """

    root: Call
    storages: dict[int, torch.UntypedStorage]
    returned: list[torch.Tensor] = field(default_factory=list)
    cached: list[torch.Tensor] = field(default_factory=list)
    attached: torch.Tensor | None = None
    given: set[int] = field(default_factory=set)
    by_forward: frozenset[str] = frozenset()

    def saved_bytes(self, calls: list[Call] | None = None) -> int:
        """Bytes that autograd kept for ``calls`` and what they called; of the whole pass where ``None``."""
        if calls is None:
            calls = [self.root]
        keys = {key for call in calls for inner in call.walk() for key in inner.saved}
        return sum(self.storages[key].nbytes() for key in keys)

    def saved_bytes_without(self, calls: set[Call]) -> int:
        """Bytes that autograd kept for everything but ``calls`` and what they called."""
        return sum(self.storages[key].nbytes() for key in self.kept_without(calls))

    def kept_without(self, calls: set[Call]) -> set[int]:
        """Keys of the storages that autograd kept for everything but ``calls`` and what they called."""
        within = {inner for call in calls for inner in call.walk()}
        return {key for call in self.root.walk() if call not in within for key in call.saved}


def storage_key(tensor: torch.Tensor) -> int | None:
    """What a tensor's storage is known by, while it is alive."""
    if tensor.layout is not torch.strided:  # sparse and jagged tensors have no storage of their own
        return None
    return tensor.untyped_storage()._cdata
