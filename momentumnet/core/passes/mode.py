"""How a pass through a stream is run: what is kept of it for backward, and when its steps are looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace

from momentumnet.core.passes.settings import StreamSettings


@dataclass(frozen=True)
class PassMode:
    """What holds for one pass, from where it begins.

    Attributes:
        reversible: whether blocks drop their activations.
        keeps_inputs: whether they are recomputed from inputs that are kept, and not from the state.
        in_company: whether blocks call other processes, so that none may be made over.
        careful: whether each step is looked at before the next one is made.
        late: whether steps are looked at in backward alone.
    """

    reversible: bool
    keeps_inputs: bool
    in_company: bool
    careful: bool
    late: bool

    @classmethod
    def of(
        cls,
        settings: StreamSettings,
        place: int,
        *,
        in_company: bool,
        may_end_early: bool,
        careful: bool,
        readable: bool,
        is_known: bool,
    ) -> PassMode:
        """That of a pass with gradients.

        Args:
            settings: the stream's.
            place: of the block that it begins with.
            in_company: as above.
            may_end_early: whether the last block may not be called.
            careful: whether the values ask for it.
            readable: whether values can be looked at: fake tensors have none, and a CUDA graph reads none.
            is_known: whether an earlier pass has told how large its values are.
        """
        is_stored = settings.backward == "stored" or place >= len(settings.blocks) - settings.kept
        late = settings.range_check == "backward" and settings.arithmetic == "exact" and not (careful or in_company)
        rests = not is_stored and settings.backward == "reversible"
        late &= not (rests and not is_known) and not may_end_early
        return cls(
            reversible=settings.backward != "stored",
            keeps_inputs=settings.backward == "checkpointed",
            in_company=in_company,
            # Activations that are stored cannot be made over, nor can a pass that may end before its last block.
            careful=readable and (careful or in_company or may_end_early or (is_stored and not late)),
            late=late,
        )

    def in_floats(self) -> PassMode:
        """From NaN or Inf, with stored activations; in company blocks are recomputed all the same."""
        return replace(
            self,
            reversible=self.reversible and self.in_company,
            keeps_inputs=self.keeps_inputs or self.in_company,
        )
