"""The errors of a call that is not made again as it was: they name block and stream, and what is known of the cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from momentumnet.core.checks import audit
from momentumnet.core.checks.audit import Comparison, Fingerprint
from momentumnet.core.state.coupling import FLOAT_TOLERANCE
from momentumnet.errors import ReconstructionError, StateRangeError
from momentumnet.listing import listed
from momentumnet.out_of_memory import is_out_of_memory
from momentumnet.recompute.surroundings.uncompiled import is_compiled
from momentumnet.recompute.suspects import Suspects

_UNKNOWN = (
    "It is not deterministic (randomness from outside torch's default generators, a non-deterministic kernel), or it "
    "depends on something that changed between forward and backward: an object that it was given, a cache, a Python "
    "attribute{}, a global"
)

_STATISTICS = (
    "If it reads the running statistics of its norms, let it take them by attribute (norm.running_mean), uncompiled, "
    "and from its first call in training on"
)

_COMPILED = (
    "It is compiled: its recompute may have run another graph than its forward, one for any size that a call of "
    "another size has made since, or none, where Dynamo had reached its limit. Compile with dynamic=True or "
    "dynamic=False, or raise torch._dynamo.config.recompile_limit"
)


@dataclass(frozen=True)
class Failures:
    """The errors of one call.

    Attributes:
        call: what is known of it; not the call itself, whose arguments would wait for the end of the backward with
            the comparisons that may fail.
        stream: the name of its stream; None outside of the streams.
        exact: whether its input comes back bit for bit.
    """

    call: Suspects
    stream: str | None = None
    exact: bool = True

    def state(self) -> ReconstructionError:
        """The state that was rewound with the block's output is not what it was."""
        what = "could not be reconstructed: it did not compute the same in backward as in forward"
        if self.exact:
            return self.differ(what)
        return self.differ(
            what, "the float inverse has lost too many digits at this depth and gamma (use arithmetic='exact')"
        )

    def output(self) -> ReconstructionError:
        """What a module returned is not what it returned in forward."""
        return self.differ("did not compute the same in backward as in forward")

    def side_output(self) -> ReconstructionError:
        """What a block returned beside the stream is not what it returned in forward."""
        return self.differ("returned something else beside the stream when it was recomputed than in forward")

    def saved_values(self) -> ReconstructionError:
        """What autograd saved for the gradient is not what it saved in forward."""
        return self.differ("saved other values for backward when it was recomputed (indices, a mask, or activations)")

    def differ(self, what: str, cause: str | None = None) -> ReconstructionError:
        """The error of a recompute that came out otherwise: ``what`` was seen of it."""
        return ReconstructionError(f"{self._who} {what}, so its gradient would be wrong. {self._why(cause)}")

    def raised(self, error: Exception) -> ReconstructionError:
        """The error of a recompute that was broken off."""
        return ReconstructionError(
            f"{self._who} raised {type(error).__name__} when it was recomputed for its gradient, as it had not done in "
            f"forward: {error}. {self._why(None)}"
        )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Exceptions of a recompute come out as errors of this package; what is no fault of the block's stays as it is.

        Raises:
            ReconstructionError: the recompute raised something, which is its cause.
        """
        try:
            yield
        except (ReconstructionError, StateRangeError):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise self.raised(error) from error

    @property
    def _who(self) -> str:
        if self.stream is None:
            return f"module {self.call.name!r}"
        return f"block {self.call.name!r} of stream {self.stream!r}"

    def _why(self, cause: str | None) -> str:
        causes = [f"Most likely {suspect}" for suspect in self.call.sentences()] or [cause or self._unknown]
        if self.call.moves_statistics:
            causes.append(_STATISTICS)
        if any(map(is_compiled, self.call.module.modules())):
            causes.append(_COMPILED)
        option = "others='keep'" if self.stream is None else "backward='stored'"
        text = ". ".join(text[0].upper() + text[1:] for text in causes)
        return f"{text}. Convert with {option} if it has to stay so."

    @property
    def _unknown(self) -> str:
        names = self.call.attributes_of_a_pass()
        if not names:
            return _UNKNOWN.format("")
        return _UNKNOWN.format(
            f" ({listed(names)} hold{'s' * (len(names) == 1)} tensors of an earlier call, with their gradients: a "
            "state that is carried on? transformers' models leave it out with use_cache=False)"
        )


def compare(
    expected: Sequence[Tensor], found: Sequence[Tensor], error: Callable[[], ReconstructionError], *, exact: bool = True
) -> None:
    """Have reports compared when this backward ends.

    Args:
        expected: of forward.
        found: of the recompute.
        error: makes the error if they differ.
        exact: whether every bit counts, or norms do within a tolerance.

    Raises:
        ReconstructionError: they are not of the same tensors, where that is known already.
    """
    if [(report.dtype, report.device) for report in expected] != [(report.dtype, report.device) for report in found]:
        raise error()
    tolerance = None if exact else FLOAT_TOLERANCE
    for before, after in zip(expected, found, strict=True):
        first, second = Fingerprint(before, tolerance=tolerance), Fingerprint(after, tolerance=tolerance)
        audit.compare(Comparison(first, second, error))
