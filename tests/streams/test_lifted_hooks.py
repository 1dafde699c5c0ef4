"""Gradients by torch.func under hooks that are lifted for them, in several threads at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.autograd import graph
from torch.autograd.graph import saved_tensors_hooks

from momentumnet.streams.tracing.lifted_hooks import lifted_for_transforms


def test_the_thread_that_ends_first_takes_nothing_from_the_other() -> None:
    before = graph.disable_saved_tensors_hooks
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def gradient(says: threading.Event, waits_for: threading.Event) -> list[float]:
        hooks = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
        with hooks, lifted_for_transforms(hooks):
            says.set()
            assert waits_for.wait(20)
            return torch.func.grad(lambda z: z.square().sum())(torch.ones(2)).tolist()

    def first() -> list[float]:
        found = gradient(first_is_in, second_is_in)
        first_is_out.set()
        return found

    def second() -> list[float]:
        assert first_is_in.wait(20)
        return gradient(second_is_in, first_is_out)

    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(first), threads.submit(second)]
        assert [future.result() for future in found] == [[2.0, 2.0]] * 2
    assert graph.disable_saved_tensors_hooks is before
