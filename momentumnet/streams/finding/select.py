"""Which of the traced calls are the blocks of streams, and which runs they form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch.autograd.graph import GradientEdge

from momentumnet.streams.finding.skip import residual_kind
from momentumnet.streams.tracing.calls import Call, Endpoint, Key

CONCATENATION = "concat"

NO_SKIP = (
    "no skip connection inside: no addition or concatenation on the way from the input to the output has the input, "
    "past every matrix product and convolution, as one operand and the block's work as another"
)
CHANGES_SHAPE = "changes the shape"  # so begins each reason of one that does
OVERWRITES = (
    "a residual block that overwrites its own input in place, so the input cannot be restored from the output; let "
    "its first operation write to a new tensor, e.g. ReLU(inplace=False), or x = x + f(x) instead of x += f(x)"
)


@dataclass(frozen=True)
class Verdict:
    """Whether a call can be a block: ``entry`` (its stream input) and ``kind`` where it can, else the ``reason``."""

    entry: Endpoint | None = None
    kind: str | None = None
    reason: str = ""


class Judge:
    """Judges calls and remembers the verdicts."""

    def __init__(self) -> None:
        self._verdicts: dict[Call, Verdict] = {}

    def __call__(self, call: Call) -> Verdict:
        if call not in self._verdicts:
            self._verdicts[call] = _judge(call)
        return self._verdicts[call]

    def runs(self, calls: Iterable[Call]) -> list[list[Call]]:
        """Groups residual blocks, given in call order, into runs in which each takes what the one before returned.

        Where an output goes to several blocks, the first of them continues the run. Blocks that concatenate do not
        continue a run of blocks that add, nor the other way round.
        """
        runs: list[list[Call]] = []
        ends: dict[tuple[Key, bool], list[Call]] = {}
        for call in calls:
            verdict = self(call)
            if verdict.entry is None or verdict.kind is None or call.output is None:
                continue
            concatenates = verdict.kind == CONCATENATION
            run = ends.pop((verdict.entry.key, concatenates), None)
            if run is None:
                run = []
                runs.append(run)
            run.append(call)
            ends[call.output.key, concatenates] = run
        return runs


def select_blocks(frame: Call, judge: Judge, allowed: Callable[[str], bool]) -> list[Call]:
    """Chooses, among the calls inside ``frame``, residual blocks of which none lies inside another.

    A run of linked siblings is kept whole where its modules are of one class. Plain containers and runs of mixed
    classes are opened where the runs inside have more links.

    Args:
        frame: The call to look into.
        judge: Says which calls are residual blocks.
        allowed: Whether the module of a name may be a block.

    Returns:
        The blocks in call order; they may still stand alone, see :meth:`Judge.runs`.
    """
    candidates = [call for call in frame.children if allowed(call.name) and judge(call).kind is not None]
    runs = judge.runs(candidates)
    chosen: list[Call] = []
    for run in runs:
        opened = [block for call in run for block in _opened(call, judge, allowed)]
        whole = len(run) > 1 and (_homogeneous(run) or _links(run, judge) >= _links(opened, judge))
        chosen += run if whole else opened
    grouped = {call for run in runs for call in run}
    for call in frame.children:
        if call not in grouped:
            chosen += select_blocks(call, judge, allowed)
    return sorted(chosen, key=lambda call: call.index)


def _opened(call: Call, judge: Judge, allowed: Callable[[str], bool]) -> list[Call]:
    inner = select_blocks(call, judge, allowed)
    return inner if _links(inner, judge) else [call]


def _links(calls: list[Call], judge: Judge) -> int:
    return sum(len(run) - 1 for run in judge.runs(calls))


def _homogeneous(run: list[Call]) -> bool:
    return len({type(call.module) for call in run}) == 1 and not run[0].plain_container


def _judge(call: Call) -> Verdict:
    output = call.output
    if call.refusal:
        return Verdict(reason=f"a stream cannot carry its tensor: {call.refusal}")
    if not call.inputs:
        return Verdict(reason="no argument of the call is a floating-point tensor")
    if output is None:
        return Verdict(reason="neither the output nor its first element is a floating-point tensor")
    if not call.keeps_shape:
        return Verdict(reason=_change(call.inputs[0], output))
    if not call.recorded_gradients:
        return Verdict(reason="the model calls it without gradients (torch.no_grad), so nothing is saved for backward")
    if any(entry.key == output.key for entry in call.inputs):
        return Verdict(reason="it returns its input itself")
    if output.edge is None or call.plain_layer:
        return Verdict(reason=NO_SKIP)
    for entry in call.inputs:
        kind = entry.edge and residual_kind(output.edge, entry.edge, call.side_nodes)
        if call.overwritten and (kind is not None or _joins_overwritten_view(call, entry, output.edge)):
            return Verdict(reason=OVERWRITES)
        if kind is not None:
            return Verdict(entry, kind)
    return Verdict(reason=NO_SKIP)


def _joins_overwritten_view(call: Call, entry: Endpoint, output: GradientEdge) -> bool:
    """Whether the block's skip begins at what its input was a view of (a linear layer's output is one of a matrix)."""
    if entry.edge is None or entry.base_edge is None:
        return False
    return residual_kind(output, entry.base_edge, call.side_nodes - {entry.edge.node}) is not None


def _change(entry: Endpoint, output: Endpoint) -> str:
    if entry.shape != output.shape:
        return f"{CHANGES_SHAPE} from {entry.shape} to {output.shape}"
    if entry.dtype != output.dtype:
        return f"changes the dtype from {entry.dtype} to {output.dtype}"
    return f"moves from {entry.device} to {output.device}"
