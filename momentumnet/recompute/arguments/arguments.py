"""The arguments of one call, kept so that the call can be made again with another tensor in the stream's place."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # the one walker that knows every registered container

from momentumnet.errors import ReconstructionError
from momentumnet.recompute.arguments.given_generators import NO_GENERATORS, GivenGenerators
from momentumnet.recompute.values.argument_objects import NO_OBJECTS, UncopiedObjects
from momentumnet.recompute.values.counters import version
from momentumnet.recompute.values.left_values import is_generator
from momentumnet.recompute.values.object_copies import copied, is_small, with_small_ones_cloned
from momentumnet.recompute.values.objects import has_state, parts


def named_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int | str, Any]:
    """The arguments of a call by position or keyword, in order."""
    named: dict[int | str, Any] = dict(enumerate(args))
    named.update(kwargs)
    return named


def parameter_names(module: nn.Module) -> list[str]:
    """The names of what a module's forward takes by position; none where they cannot be told."""
    try:
        return list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return []


# By block, which of the tensors among its arguments its calls write to, by number: they are cloned before each call.
_WRITTEN: weakref.WeakKeyDictionary[nn.Module, set[int]] = weakref.WeakKeyDictionary()
# Stands in the kept arguments, and in the objects among them, where the stream tensor stood.
_STREAM = torch.empty(0)
# Arguments of these very types hold nothing, so that there is nothing to walk.
_SINGLE = frozenset({type(None), bool, int, float, str, Tensor, nn.Parameter})


class Arguments:
    """The arguments of a call without the stream, held so that they keep no autograd graph alive.

    A non-leaf tensor that needs a gradient is kept as a detached alias: the block's own graph, which holds the real
    one, delivers the gradient; a reference here would tie the graph and the tape into a cycle.

    An object of Python (a cache, a graph, a context) is kept as a copy of what it was, for the block and those behind
    it may write to it. Its tensors are kept as if they were arguments themselves, but for small ones (counters), which
    are cloned. One that refuses to be copied is kept as it is. NumPy's arrays are such objects. Other small tensors are
    cloned before each call of a block whose first one has written to them. Random generators stay themselves.

    Args:
        block: which is called.
        stream: the stream's tensor among them.
        args: positional arguments.
        kwargs: keyword arguments.
        own: those, by position or keyword, that no other call is given.

    Attributes:
        generators: those among them, and in objects and containers there.
    """

    def __init__(
        self,
        block: nn.Module,
        stream: Tensor | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        own: Collection[int | str] = (),
    ) -> None:
        flat = _SINGLE.issuperset(map(type, args)) and _SINGLE.issuperset(map(type, kwargs.values()))
        self._names = tuple(kwargs)
        self._spec: pytree.TreeSpec | None = None
        leaves = [*args, *kwargs.values()]
        if not flat:
            leaves, self._spec = pytree.tree_flatten((args, kwargs))
        aliases: dict[int, Tensor] = {}
        self._leaves = [_STREAM if stream is not None and leaf is stream else kept(leaf, aliases) for leaf in leaves]
        self._versions = [version(leaf) if isinstance(leaf, Tensor) else 0 for leaf in self._leaves]
        self._objects: dict[int, Any] = {}
        self._held: list[tuple[Tensor, int]] = []
        # Small tensors in them, and the clones that are kept; tensors in them after the call. Until the call stands.
        self._cloned: list[tuple[Tensor, Tensor]] = []
        self._written: list[Tensor] = []
        self._arrays: list[tuple[Any, Any]] = []  # in them, and their copies. Until the call stands, too
        generators: list[Any] = []  # in them, and among the arguments themselves
        self._clones: dict[int, Tensor] = {}  # of small tensors, by number; after the first run of those it wrote to
        self._given: dict[int, Tensor] = {}  # what a recompute is given for them
        if len(self._leaves) > 1:
            self._keep_values(block)
        self._is_ordered = True  # no set holds tensors, of which nobody could tell which one stands for which
        self._own = own
        objects = {} if flat else {place: leaf for place, leaf in enumerate(self._leaves) if has_state(leaf)}
        if objects:
            self._keep_objects(objects, stream, aliases, generators)
        if not flat:
            generators += [leaf for leaf in self._leaves if is_generator(type(leaf))]
        self.generators = GivenGenerators(generators) if generators else NO_GENERATORS
        self._uncopied = NO_OBJECTS
        if not flat:
            copies = {id(leaf) for place, leaf in objects.items() if self._objects[place] is not leaf}
            self._uncopied = UncopiedObjects(named_arguments(args, kwargs), copies)

    def _keep_values(self, block: nn.Module) -> None:
        """Clone the tensors that the block may write to: in its first call all small ones."""
        known = _WRITTEN.get(block)
        is_first = known is None
        if known is None:
            known = _WRITTEN.setdefault(block, set())
        elif not known:
            return
        self._known = known
        clones: dict[int, Tensor] = {}  # by the tensor: one that is given twice is one in a recompute, too
        for place, leaf in enumerate(self._leaves):
            is_plain = type(leaf) is Tensor and leaf is not _STREAM
            if is_plain and (is_first or place in known) and is_small(leaf) and not leaf.is_inference():
                if id(leaf) not in clones:
                    clones[id(leaf)] = leaf.clone()
                    self._cloned.append((leaf, clones[id(leaf)]))
                self._clones[place] = clones[id(leaf)]

    def _keep_objects(
        self, objects: dict[int, Any], stream: Tensor | None, aliases: dict[int, Tensor], generators: list[Any]
    ) -> None:
        def held(tensor: Tensor) -> Tensor:
            if tensor is stream:
                return _STREAM
            if is_small(tensor):
                self._cloned.append((tensor, tensor.clone()))
                return self._cloned[-1][1]
            tensor = kept(tensor, aliases)
            self._held.append((tensor, version(tensor)))
            return tensor

        self._objects = copied(objects, held, self._arrays, generators)
        for place in objects:
            self._leaves[place] = None

    def notice_changes(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, may_be_taken_back: bool) -> None:
        """The first run is over: remember which of the objects that stay themselves it has changed.

        A run that may be taken back remembers what it has left in the others, too.
        """
        self.generators.forget_unused()
        self._uncopied.notice_changes()
        if self._clones:
            leaves, versions = self._leaves, self._versions
            self._clones = {
                place: value for place, value in self._clones.items() if leaves[place]._version != versions[place]
            }
            self._known.update(self._clones)
        if not may_be_taken_back:
            self.stand()
        else:
            # Without their history, which would tie the graph to its tape.
            self._written = [tensor if is_small(tensor) else tensor.detach() for tensor in self.shared(args, kwargs)]

    def stand(self) -> None:
        """The first run will not be taken back."""
        self._uncopied.let_go()
        self._cloned, self._written, self._arrays = [], [], []
        for place, value in self._clones.items():
            self._leaves[place], self._versions[place] = value, value._version

    @property
    def can_be_given_anew(self) -> bool:
        """Whether objects that stay themselves are still what the first run was given."""
        return self._uncopied.are_unchanged and all(array.tobytes() == copy.tobytes() for array, copy in self._arrays)

    def shared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The tensors in objects and containers that other calls may be given, too, in order."""
        written = []
        if self._clones:
            leaves = [*args, *kwargs.values()] if self._spec is None else pytree.tree_leaves((args, kwargs))
            written = [leaves[place] for place in self._clones]
        if self._spec is None:
            return written
        named = named_arguments(args, kwargs).items()
        shared = [value for key, value in named if key not in self._own and has_state(value)]
        found = []
        for part, contents in parts(shared, apart=self._uncopied.given):
            if contents is None:
                found.append(part)
            elif isinstance(contents.items, set):
                self._is_ordered &= not any(isinstance(item, Tensor) or has_state(item) for item in contents.items)
        known = set(map(id, found))
        return [*found, *[tensor for tensor in written if id(tensor) not in known]]

    def rewritten(self, left: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """What the first run left in objects and containers, and what another run has ``left`` there instead.

        Raises:
            ValueError: it cannot be told which tensor stands for which.
        """
        if not self._is_ordered:
            raise ValueError("tensors in a set have no order")
        return zip(self._written, left, strict=True)

    def renew(self, tensor: Tensor, value: Tensor) -> None:
        """``tensor`` should have been ``value`` when its clone was made."""
        for source, clone in self._cloned:
            if source is tensor:
                clone.copy_(value)

    @property
    def changed(self) -> list[tuple[int | str, str]]:
        """Position or keyword, and type, of each object that the first run has changed and no copy was made of."""
        return self._uncopied.changed

    def tensors(self) -> Iterator[tuple[int, Tensor]]:
        """The tensors among them and their numbers."""
        for index, leaf in enumerate(self._leaves):
            if isinstance(leaf, Tensor) and leaf is not _STREAM:
                yield index, self._given.get(index, leaf)

    @property
    def device(self) -> torch.device:
        """Where the first tensor argument lives."""
        devices = [leaf.device for leaf in self._leaves if isinstance(leaf, Tensor)]
        return devices[0] if devices else torch.device("cpu")

    def with_stream(self, stream: Tensor | None, name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with another tensor in the stream's place."""
        for place, (leaf, seen) in enumerate(zip(self._leaves, self._versions, strict=True)):
            if isinstance(leaf, Tensor) and version(leaf) != seen and place not in self._clones:
                raise ReconstructionError(
                    f"block {name!r}: a tensor argument of shape {tuple(leaf.shape)} was changed in place after the "
                    "block's forward, or in it; pass a copy, let the block make a new tensor, or change it only after "
                    "backward"
                )
        for tensor, seen in self._held:
            if version(tensor) != seen:
                raise self._written_in_place(tensor, name)
        leaves = [stream if leaf is _STREAM else leaf for leaf in self._leaves]
        for place, found in self._found_again(stream).items():
            leaves[place] = found
        if self._clones:
            given = {id(value): value.clone() for value in self._clones.values()}
            self._given = {place: given[id(value)] for place, value in self._clones.items()}
            for place, value in self._given.items():
                leaves[place] = value
        if self._spec is None:
            count = len(leaves) - len(self._names)
            return tuple(leaves[:count]), dict(zip(self._names, leaves[count:], strict=True))
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return args, kwargs

    def _found_again(self, stream: Tensor | None) -> dict[int, Any]:
        """The objects as the first run found them. Copies again: the call may write to them."""
        if not self._objects:
            return {}

        def again(tensor: Tensor) -> Tensor | None:
            return stream if tensor is _STREAM else with_small_ones_cloned(tensor)

        found: dict[int, Any] = copied(self._objects, again)
        return found

    def _written_in_place(self, tensor: Tensor, name: str) -> ReconstructionError:
        kinds = " or ".join(sorted({type(found).__name__ for found in self._objects.values()}))
        return ReconstructionError(
            f"block {name!r}: a tensor of shape {tuple(tensor.shape)} in an argument object ({kinds}) was changed in "
            "place, in the block's forward or after it, so the object cannot be shown to the recompute as it was. If "
            "it is a key-value cache, train without one (use_cache=False), or with one that makes new tensors "
            "(DynamicCache); else let the object take a new tensor, or convert with backward='stored'"
        )


def kept(leaf: Any, aliases: dict[int, Tensor]) -> Any:
    """``leaf`` itself, or its alias without a history, one for each tensor."""
    if not isinstance(leaf, Tensor) or leaf.grad_fn is None:
        return leaf
    if id(leaf) not in aliases:
        aliases[id(leaf)] = leaf.detach().requires_grad_()
    return aliases[id(leaf)]


def replace_stream(
    args: tuple[Any, ...], kwargs: dict[str, Any], old: Tensor, new: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with ``new`` in the place of ``old``.

    Containers among them stay the caller's own, also where they hold ``old``: a block may write into one.
    """

    def replaced(value: Any) -> Any:
        return new if value is old else value

    return tuple(map(replaced, args)), {name: replaced(value) for name, value in kwargs.items()}
