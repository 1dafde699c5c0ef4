"""An optimizer whose parameter groups, state and state dict are those of another one, which it drives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class DelegatingOptimizer(Optimizer, ABC):
    """An optimizer around a base optimizer.

    Parameter groups and state *are* those of the base optimizer. So schedulers attach to either of the two, a new
    learning rate or momentum arrives, and ``state_dict`` is the base optimizer's and resumes bit for bit.

    Args:
        base: the base optimizer.
        own_options: options of the optimizer around it that stand in each parameter group.
    """

    base_optimizer: Optimizer
    _own_by_group: Sequence[dict[str, Any]] = ()

    def __init__(self, base: Optimizer, own_options: dict[str, Any]) -> None:
        # Not Optimizer.__init__, which would begin groups and a state of its own; this is its way after unpickling.
        self.__setstate__({"defaults": {**base.defaults, **own_options}, "base_optimizer": base})
        self._own_options = own_options

    @abstractmethod
    def _refuse_midway(self, what: str) -> None:
        """Raise StepOrderError where ``what`` is asked for in the middle of a step."""

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError for an option that cannot be."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's, and no copy; each group has own options."""
        self._give_own_options()
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The base optimizer's, and no copy."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base_optimizer.state = state

    def _give_own_options(self) -> None:
        """Give own options to groups that have none, and remember those of all.

        A group that came past this optimizer has them by their defaults, and one that lost them, as the base optimizer
        loaded a state of its own, has them again.
        """
        groups = self.base_optimizer.param_groups
        for index, group in enumerate(groups):
            if not self._own_options.keys() <= group.keys():
                own = self._own_by_group[index] if index < len(self._own_by_group) else self._own_options
                group.update({name: group.get(name, value) for name, value in own.items()})
        self._own_by_group = [{name: group[name] for name in self._own_options} for group in groups]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; own options that it does not name have their default."""
        self._refuse_midway("add_param_group")
        group = {**self._own_options, **param_group}
        self._check_group(group)
        self.base_optimizer.add_param_group(group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict, own options in its groups. Load it before the next scheduler step."""
        self._refuse_midway("state_dict")
        self._give_own_options()  # to groups that came past it
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, or the state of the base optimizer alone (own options stay as they are)."""
        self._refuse_midway("load_state_dict")
        self._give_own_options()  # which are remembered, for groups that lose them to the state
        self.base_optimizer.load_state_dict(state_dict)
        self._give_own_options()

    # The state dict is the base optimizer's, so its hooks are too.
    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        return self.base_optimizer.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        return self.base_optimizer.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        return self.base_optimizer.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        return self.base_optimizer.register_load_state_dict_post_hook(hook, prepend)
