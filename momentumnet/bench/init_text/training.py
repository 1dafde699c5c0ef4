"""One row of ``bench init-text``: a decoder of characters, initialised in one way, trained from one seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from momentumnet.bench.init_text import methods
from momentumnet.bench.init_text.characters import TextData
from momentumnet.bench.init_text.methods import ADAM, GRADINIT, METAINIT, TFIXUP, WARMUP, Choice, loss_of
from momentumnet.bench.init_text.networks import build
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.seeds import Case
from momentumnet.bench.trainings.recipe import MOMENTUM
from momentumnet.bench.trainings.training import FAILURES, ORDERS, DivergedError, closure, failure
from momentumnet.optim import warmup

VALIDATION_WINDOWS, VALIDATION_BATCH = 64, 32
EVALUATIONS = 10  # of the validation loss in a training, beside the one before its first step


@dataclass(frozen=True)
class Recipe:
    """How decoders are initialised and trained.

    Attributes:
        depth: Layers.
        width: Features of a token.
        length: Characters of a sequence.
        batch_size: Sequences in a batch of the training; an initialisation that learns takes half as many.
        steps: Steps of the training.
        warmup_steps: Those of them whose rate is warmed up, by the method of that name.
        init_steps: Steps of initialisations that learn.
        clip: Largest norm of the gradient; None for no clipping.
    """

    depth: int
    width: int
    length: int
    batch_size: int
    steps: int
    warmup_steps: int
    init_steps: int
    clip: float | None


@dataclass
class Training:
    """A training from a seed.

    Attributes:
        case: ``network``, ``method``, ``init_for`` (GradInit's optimizer), ``optimizer``, ``rate`` and ``seed``.
        text: What it reads.
        recipe: How it is trained.
        device: Where.
        choice: Options of an initialisation that learns; None for one that does not.
        init_rate: Learning rate of the optimizer that GradInit is for.
        course: Steps done, mean training loss since the place before (None at the start), validation loss.
    """

    case: Case
    text: TextData
    recipe: Recipe
    device: torch.device
    choice: Choice | None = None
    init_rate: float | None = None
    course: list[tuple[int, float | None, float]] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Stretches of the training, each with the validation loss at its end."""
        return len(self._ends())

    def row(self, advance: Callable[[], object] = lambda: None) -> Row:
        """Runs it; ``advance`` is called after each stretch.

        Returns:
            Validation loss at the end (None if there was none), the course, what the initialisation did and how long
            each took; ``diverged`` says whether a loss was not finite, ``error`` what ended the training early.
        """
        started = time.perf_counter()
        found: Row = {"validation": None, "diverged": False}
        try:
            model = self.new_model()
            found["init"] = self._initialise(model)
            found["init_seconds"] = time.perf_counter() - started
            self._train(model, advance)
            found["validation"] = self.course[-1][2]
        except FAILURES as error:
            found |= {"error": failure(error), "diverged": isinstance(error, DivergedError)}
        if self.choice is not None:
            found |= vars(self.choice)
        return {**found, "course": self.course, "seconds": time.perf_counter() - started}

    def new_model(self) -> nn.Module:
        """The network on its device, with the seed's weights of PyTorch."""
        shape = {"depth": self.recipe.depth, "width": self.recipe.width, "length": self.recipe.length}
        vocabulary = len(self.text.characters)
        return build(self.case["network"], self.case["seed"], **shape, vocabulary=vocabulary).to(self.device)

    def schedule(self, model: nn.Module) -> tuple[Optimizer, LRScheduler]:
        """Optimizer and scheduler: a rate that falls as a cosine, of the method ``warmup`` warmed up before."""
        rate, steps = self.case["rate"], self.recipe.steps
        optimizer: Optimizer
        if self.case["optimizer"] == ADAM:
            optimizer = Adam(model.parameters(), rate)
        else:
            optimizer = SGD(model.parameters(), rate, momentum=MOMENTUM)
        if self.case["method"] != WARMUP:
            return optimizer, CosineAnnealingLR(optimizer, steps)
        after = CosineAnnealingLR(optimizer, steps - self.recipe.warmup_steps)
        return optimizer, warmup(optimizer, self.recipe.warmup_steps, after=after)

    def _initialise(self, model: nn.Module) -> dict[str, Any] | None:
        method, steps = self.case["method"], self.recipe.init_steps
        # Other places of the text than those of the training.
        batches = self._batches(max(1, self.recipe.batch_size // 2), ORDERS // 2)
        if method == TFIXUP:
            return methods.tfixup(model, next(batches)[0])
        if method not in (GRADINIT, METAINIT):
            return None
        if self.choice is None:
            raise ValueError(f"{method} takes a choice of its options")
        if method == METAINIT:
            return methods.metainit(model, list(islice(batches, steps)), tau=self.choice.tau, steps=steps)
        if self.init_rate is None:
            raise ValueError("gradinit takes the rate of the optimizer that it is for")
        # A step takes two batches where the bound is met.
        own, optimizer = list(islice(batches, 2 * steps)), self.case["init_for"]
        return methods.gradinit(model, own, optimizer=optimizer, rate=self.init_rate, choice=self.choice, steps=steps)

    def _batches(self, size: int, order: int) -> Iterator[tuple[Tensor, Tensor]]:
        for tokens, targets in self.text.batches(size, self.recipe.length, ORDERS * self.case["seed"] + order):
            yield tokens.to(self.device), targets.to(self.device)

    def _ends(self) -> list[int]:
        """Steps after which the validation loss is taken, the last one among them."""
        count = min(EVALUATIONS, self.recipe.steps)
        return [self.recipe.steps * part // count for part in range(1, count + 1)]

    def _train(self, model: nn.Module, advance: Callable[[], object]) -> None:
        optimizer, scheduler = self.schedule(model)
        clip = math.inf if self.recipe.clip is None else self.recipe.clip
        batches, done = self._batches(self.recipe.batch_size, 0), 0
        self.course.append((0, None, self._validation(model, 0)))
        for end in self._ends():
            losses = []
            for tokens, targets in islice(batches, end - done):
                done += 1
                loss = partial(_loss, model, tokens, targets)
                step = closure(model, optimizer, loss, clip=clip, where=f"step {done}")
                losses.append(float(optimizer.step(step)))
                scheduler.step()
            self.course.append((end, sum(losses) / len(losses), self._validation(model, end)))
            advance()

    @torch.no_grad()
    def _validation(self, model: nn.Module, step: int) -> float:
        model.eval()
        batches = self.text.validation_batches(VALIDATION_BATCH, self.recipe.length, VALIDATION_WINDOWS)
        losses = [float(_loss(model, x.to(self.device), y.to(self.device))) * len(x) for x, y in batches]
        model.train()
        loss = sum(losses) / VALIDATION_WINDOWS
        if not math.isfinite(loss):
            raise DivergedError(f"diverged: validation loss {loss} after step {step}")
        return loss


def _loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    return loss_of(model(tokens), targets)
