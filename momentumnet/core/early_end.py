"""Which recomputes end as soon as they have saved what the first run saved: what would follow, nobody is given."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as all_modules

from momentumnet.recompute.replay import BlockCall
from momentumnet.recompute.saved_values import SavedValues
from momentumnet.recompute.uncompiled import is_compiled

# Private: those of register_module_forward_hook and register_module_forward_pre_hook, for all modules.
_GLOBAL_HOOKS = (all_modules._global_forward_hooks, all_modules._global_forward_pre_hooks)


def may_end_early(call: BlockCall, values: SavedValues) -> bool:
    """Whether the recompute of a call that has just been made for the first time can be left behind its last value.

    Not where nothing was saved whose values tell that it is the same, where a stream inside or a hook waits for the
    end, or a compiler has the code.
    """
    unseen = not any(has_hooks(module) or is_compiled(module) for module in call.modules)
    return unseen and values.has_computed_floats and not call.holds_streams


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook, of the module or of all modules, is called where it is."""
    return bool(module._forward_hooks or module._forward_pre_hooks or any(_GLOBAL_HOOKS))
