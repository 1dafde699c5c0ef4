"""Lottery tickets: iterative magnitude pruning with rewinding, its controls, and a run that survives being killed."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet import couplings
from momentumnet.description.stream_rules import Rules, rules_of, set_rules
from momentumnet.errors import CheckpointError
from momentumnet.listing import listed
from momentumnet.options import check_names, is_finite, is_whole, true_or_false, whole
from momentumnet.progress import steps_with_progress
from momentumnet.prune.lottery.arms import CONTROLS, RANDOM_MASK, REINITIALISED, TICKET, training_name
from momentumnet.prune.lottery.reinitialise import reset_parameters
from momentumnet.prune.lottery.report import LotteryReport, TicketTraining
from momentumnet.prune.lottery.seeds import seed_of, seeded
from momentumnet.prune.lottery.structure import Structure, structure_of
from momentumnet.prune.lottery.ticket_training import State, TrainFunction, Watch, on_cpu, train
from momentumnet.prune.lottery.trainings import Record, Trainings
from momentumnet.prune.masking.masks import Masks, apply_masks, masks_of
from momentumnet.prune.masking.scores import Shares, magnitude_scores
from momentumnet.resume import load_training_state, training_state


class LotteryTicket:
    r"""Finds lottery tickets by iterative magnitude pruning (Frankle, Carbin, ICLR 2019, section 1 and appendix B).

    Round 0 trains the dense network. After each round the ``fraction`` of the weights that are left with the smallest
    magnitudes is taken away, those that stay go back to what they were at the beginning (or at step ``rewind_to``:
    Frankle et al., ICML 2020), and the network is trained again:

    .. math::
        m_{r+1} = m_r \odot [\lvert w_T^{(r)} \rvert \text{ is not among the lowest}], \qquad
        w_k^{(r+1)} = m_{r+1} \odot w_k^{(0)}

    One-shot pruning is ``rounds=1`` with a large ``fraction``. Each training works on a copy of ``model``, which stays
    as it is. Parameters without a mask (biases, norms) and buffers are rewound too.

    Args:
        model: The network with its first weights, not masked.
        train_fn: ``train_fn(model, log)`` trains the network that it is given, in place, from step ``log.start_step``
            on; it calls ``log.step()`` after each step of its optimizer and ``log.accuracy(value)`` where it evaluates
            (or returns the last accuracy). It makes its optimizer itself, and schedules of the learning rate or of
            gamma, which begin at that step. It may depend on its arguments and on the global random generators (torch,
            numpy, random), which begin each training with the same ``seed``.
        fraction: What each round takes of the units that are left; or by parameter name, for ``scope="layer"``.
        rounds: Number of prunings; there is one training more.
        rewind_to: Step of the dense training whose weights the tickets begin with; 0 for the first weights.
        scope: "global" compares the weights of all layers, "layer" those of one.
        structure: "weight", "channel" (whole channels, which `ChannelStructure.shrink` turns into smaller layers) or
            "block" (whole residual blocks).
        example_inputs: Inputs of the model, for channels and blocks to be found; as for `momentumnet.convert`.
        skip: Parameters or modules that are not pruned (``structure="weight"``).
        controls: What each ticket is compared with, of "reinitialised" (the ticket's mask on newly drawn weights,
            trained from step 0) and "random mask" (the ticket's weights under a mask that is drawn by chance, as sparse
            in each layer).
        reinitialise: Draws new weights in place, for the control: e.g. ``momentumnet.init.kaiming_``. By default
            each module's ``reset_parameters``.
        early_bird: End all trainings but the last as soon as the masks that they would give move by less than this
            share of the weights over 5 evaluations (`EarlyBird`; You et al., ICLR 2020). 0 only watches: the report
            then has the distances. Keeps one mask for each evaluation of the training that runs.
        seed: Of the trainings' generators, the new weights and the random masks.
        folder: Where each finished training is kept. The same call goes on after those that the folder holds, from the
            first weights in it, and comes to the same result; a killed process loses the training that ran. With
            several processes (each calls this) all must see the folder, and the first one writes.

    Raises:
        ValueError: An option cannot be, or the model has masks.
        CheckpointError: The folder holds a run with other settings.

    Example:
        >>> from momentumnet.prune import LotteryTicket
        >>> x = torch.randn(64, 8)
        >>> def train(model, log):
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     for _ in range(log.start_step, 20):
        ...         optimizer.zero_grad()
        ...         (model(x) - x).square().mean().backward()
        ...         optimizer.step()
        ...         log.step()
        ...     return -float((model(x) - x).square().mean().detach())
        >>> lottery = LotteryTicket(nn.Linear(8, 8), train, fraction=0.5, rounds=2)
        >>> [training.kept for training in lottery.run().trainings]
        [64, 32, 16]
    """

    def __init__(
        self,
        model: nn.Module,
        train_fn: TrainFunction,
        *,
        fraction: Shares = 0.2,
        rounds: int = 10,
        rewind_to: int = 0,
        scope: str = "global",
        structure: str = "weight",
        example_inputs: Any = None,
        skip: Collection[str] = (),
        controls: Sequence[str] = (),
        reinitialise: Callable[[nn.Module], object] | None = None,
        early_bird: float | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
    ) -> None:
        _check_options(rounds, rewind_to, skip, controls, early_bird, seed)
        if masks_of(model):
            raise ValueError(
                "the model has masks already, and a lottery begins with the dense network: take them off first "
                "(momentumnet.prune.remove_masks leaves zeros in their place, which are the first to go)"
            )
        self._model, self._train_fn = copy.deepcopy(model), train_fn
        self._fraction, self._scope, self._skip = fraction, scope, tuple(skip)
        self._rounds, self._rewind_to, self._early_bird, self._seed = rounds, rewind_to, early_bird, int(seed)
        self._controls, self._reinitialise = tuple(dict.fromkeys(controls)), reinitialise or reset_parameters
        self._structure: Structure = structure_of(structure, self._model, example_inputs, self._skip)
        self._dense_masks = self._next_masks(self._model, None, fraction=0.0)
        self._next_masks(self._model, self._dense_masks)  # before hours of training: whether the options fit
        self._trainings = Trainings(None if folder is None else Path(folder), self._settings(structure))

    def run(self, *, notify: Callable[[TicketTraining], object] | None = None, progress: bool = False) -> LotteryReport:
        """Trains, prunes and rewinds, round by round.

        Args:
            notify: Called with each training as it is finished, or found finished in the folder.
            progress: Show a progress bar of the rounds on terminals, where rich is installed.

        Returns:
            Accuracies and steps by sparsity, as a table and a plot.

        Raises:
            ValueError: ``train_fn`` did not train the model that it was given, or made fewer than ``rewind_to`` steps.
            CheckpointError: A file in the folder is damaged.
        """
        true_or_false(progress=progress)
        self._restore_first()
        done: list[TicketTraining] = []
        for number in steps_with_progress(self._rounds + 1, "lottery rounds", progress=progress):
            for arm in (TICKET, *(self._controls if number else ())):
                record = self._trainings.get(training_name(arm, number)) or self._train(arm, number)
                done.append(TicketTraining.from_record(arm, number, record))
                if notify is not None:
                    notify(done[-1])
        return LotteryReport(tuple(done))

    def masks(self, number: int, *, arm: str = TICKET) -> Masks:
        """The masks of a round, 0 for the dense network's, which keep everything.

        Raises:
            LookupError: It has not been trained.
        """
        return dict(self._record(arm, number)["masks"])

    def ticket(self, number: int, *, arm: str = TICKET, trained: bool = True) -> nn.Module:
        """A masked copy of the network of a round.

        Args:
            number: The round, 1 for the first that is pruned; 0 gives the dense network, without masks.
            arm: "ticket", or one of the controls.
            trained: With the weights after the training, and what a schedule made of gamma (or of Dr2Net's
                coefficients) in it; or as it was before it.

        Raises:
            LookupError: It has not been trained.
        """
        true_or_false(trained=trained)
        record = self._record(arm, number)
        model = self._network(record["trained" if trained else "initial"], record["masks"] if number else None)
        if trained and "rules" in record:  # not in the folders of earlier versions
            set_rules(model, record["rules"])
        return model

    def _settings(self, structure: str) -> dict[str, object]:
        """What must agree for trainings of an earlier run to be used."""
        return {
            "fraction": str(self._fraction),
            "rewind_to": self._rewind_to,
            "scope": self._scope,
            "structure": structure,
            "skip": ", ".join(self._skip),
            "early_bird": None if self._early_bird is None else f"{self._early_bird}, {self._rounds} rounds",
            "seed": self._seed,
            "network": _fingerprint(self._model),
        }

    def _record(self, arm: str, number: int) -> Record:
        record = self._trainings.get(training_name(arm, number))
        if record is None:
            raise LookupError(f"round {number} of {arm!r} has not been trained; call run() first")
        return record

    def _restore_first(self) -> None:
        """Begin with the first weights of the folder; keep those of this model where there are none."""
        first, rules = self._trainings.get("first"), rules_of(self._model)
        if first is None:
            weights = on_cpu(self._model.state_dict())
            self._trainings.put("first", {"weights": weights, "streams": training_state(self._model), "rules": rules})
            return
        if first.get("rules", rules) != rules:  # not in the folders of earlier versions
            raise CheckpointError(
                f"the folder holds a run of another network: {_in_words(first['rules'])} there, {_in_words(rules)} "
                "now; convert the network as it was, or give another folder"
            )
        self._model.load_state_dict(first["weights"])
        if "streams" in first:  # not in the folders of earlier versions
            load_training_state(self._model, first["streams"])

    def _network(self, state: State, masks: Masks | None) -> nn.Module:
        model = copy.deepcopy(self._model)
        model.load_state_dict(state)
        if masks is not None:
            apply_masks(model, masks)
        return model

    def _train(self, arm: str, number: int) -> Record:
        state, masks, start_step = self._start(arm, number)
        model = self._network(state, masks if number else None)
        watch = None
        if self._early_bird is not None and arm == TICKET:
            watch = Watch(
                lambda: self._next_masks(model, masks), tolerance=self._early_bird, may_stop=number < self._rounds
            )
        record: Record = {"initial": state, "masks": masks}
        wanted = None
        if number == 0:
            record["rewound"] = state  # unless a later step's weights take its place
            wanted = self._rewind_to or None
        record |= train(model, self._train_fn, start_step=start_step, rewind_to=wanted, seed=self._seed, watch=watch)
        self._trainings.put(training_name(arm, number), record)
        return record

    def _start(self, arm: str, number: int) -> tuple[State, Masks, int]:
        """Weights, masks and step that a training begins with."""
        if number == 0:
            return on_cpu(self._model.state_dict()), self._dense_masks, 0
        if arm == TICKET:
            before = self._record(TICKET, number - 1)
            masks = self._next_masks(self._network(before["trained"], None), before["masks"])
        else:
            masks = self.masks(number)
        if arm == REINITIALISED:
            model = copy.deepcopy(self._model)
            with seeded(seed_of(self._seed, arm, number), model):
                self._reinitialise(model)
            return on_cpu(model.state_dict()), masks, 0
        if arm == RANDOM_MASK:
            generator = torch.Generator().manual_seed(seed_of(self._seed, arm, number))
            masks = self._structure.shuffle(masks, generator=generator)
        return self._record(TICKET, 0)["rewound"], masks, self._rewind_to

    def _next_masks(self, model: nn.Module, masks: Masks | None, fraction: Shares | None = None) -> Masks:
        """The masks after one more pruning, by the weights as they are."""
        return self._structure.prune(
            magnitude_scores(model, skip=self._skip),
            fraction=self._fraction if fraction is None else fraction,
            scope=self._scope,
            previous=masks,
        )


def _check_options(
    rounds: int, rewind_to: int, skip: Collection[str], controls: Sequence[str], early_bird: float | None, seed: int
) -> None:
    """These options can be; shares, scopes and structures are looked at where they are used."""
    whole("rounds", rounds)
    whole("rewind_to", rewind_to, least=0)
    if not is_whole(seed):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    check_names("skip", skip)
    check_names("controls", controls)
    for control in controls:
        if control not in CONTROLS:
            raise ValueError(f"controls must be of {', '.join(map(repr, CONTROLS))}, got {control!r}")
    if early_bird is not None and not (is_finite(early_bird) and 0 <= early_bird <= 1):
        raise ValueError(f"early_bird must be a share of the weights between 0 and 1, got {early_bird!r}")


def _in_words(rules: Rules) -> str:
    return listed([f"{name} at {couplings.in_words(rule)}" for name, rule in rules.items()]) or "not converted"


def _fingerprint(model: nn.Module) -> str:
    """What tells one architecture from another, whatever its weights."""
    tensors = [(name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor)]
    shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors]
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]
