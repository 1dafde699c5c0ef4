"""momentumnet finetune with sharpness-aware minimisation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from momentumnet.finetuning import data, models
from tests.cli.finetuned import interrupt_in_epoch, learned, weights


@pytest.mark.parametrize("options", [(), ("--adaptive", "--rho", "2")])
def test_sam_resumes_and_trains_otherwise_than_adamw(
    finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    sam = ("--epochs", "2", "--optimizer", "sam", *options)
    done = finetune(*sam, "--output", "whole", "--json")
    settings = json.loads(done.out)["settings"]
    rho, adaptive = (2.0, True) if options else (0.05, False)
    assert (settings["optimizer"], settings["rho"], settings["adaptive"]) == ("sam", rho, adaptive)
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 2)
        assert finetune(*sam, "--output", "out").status == 130
    assert "resuming after epoch 1 of 2" in finetune(*sam, "--output", "out", "--resume").out
    expected = weights("whole")
    assert all(torch.equal(value, expected[key]) for key, value in weights("out").items())
    assert finetune("--epochs", "2", "--output", "adamw").status == 0
    assert not torch.equal(weights("adamw")["classifier.3.weight"], expected["classifier.3.weight"])


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_is_the_papers_formula_around_adamw(finetune: Callable[..., Any], photos: Path, adaptive: bool) -> None:
    """One step on all images, written out: two gradients, the dropout of the first, statistics counted once."""
    options = ("--epochs", "1", "--batch-size", "16", "--gamma", "0", "--image-size", "32", "--lr", "0.01")
    sam = ("--optimizer", "sam", "--rho", "0.5", *(["--adaptive"] if adaptive else []))
    assert finetune(*options, *sam, "--output", "out").status == 0
    images = data.load_images(str(photos), image_size=32, say=print)
    torch.manual_seed(0)
    model, _ = models.build_classifier("mobilenet_v3_small", weights="none", classes=2, image_size=32, say=print)
    model.train()
    torch.manual_seed(0)
    ((x, y),) = images.batches(images.train, 16, shuffle_seed=1)
    random = torch.get_rng_state()
    F.cross_entropy(model(x), y).backward()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    kept = [p.detach().clone() for p in model.parameters()]
    scales = [w.abs() + 0.01 if adaptive else torch.ones_like(w) for w in kept]
    scaled = [t * p.grad for t, p in zip(scales, model.parameters(), strict=True)]
    norm = torch.cat([value.flatten() for value in scaled]).double().norm()
    with torch.no_grad():
        for p, t, value in zip(model.parameters(), scales, scaled, strict=True):
            p += 0.5 * t * value / norm
    model.zero_grad()
    torch.set_rng_state(random)
    F.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        for p, value in zip(model.parameters(), kept, strict=True):
            p.copy_(value)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=1)
    optimizer.step()
    expected = {name: p.detach() for name, p in model.named_parameters()} | buffers
    found = weights("out")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)
    # Adam's first step hides the size of the gradient, which its first moment shows.
    state = torch.load("out/checkpoint-momentum.pt", weights_only=True)["optimizer"]["state"]
    moments = torch.cat([state[index]["exp_avg"].flatten() for index in range(len(kept))])
    reference = torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in model.parameters()])
    assert float((moments - reference).norm() / reference.norm()) < 1e-3


def test_sam_compares_with_the_unconverted_network(finetune: Callable[..., Any]) -> None:
    # At gamma 0 the converted network is the original one.
    done = finetune("--epochs", "1", "--compare", "--gamma", "0", "--optimizer", "sam", "--output", "out", "--json")
    networks = json.loads(done.out)["networks"]
    assert learned(networks["momentum"]) == learned(networks["unconverted"]) != []


def test_sam_on_recomputed_activations_is_that_on_stored_ones(finetune: Callable[..., Any]) -> None:
    for backward in ("reversible", "stored"):
        options = ("--epochs", "1", "--optimizer", "sam", "--backward", backward)
        assert finetune(*options, "--output", backward).status == 0
    stored = weights("stored")
    assert all(torch.equal(value, stored[key]) for key, value in weights("reversible").items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rho", "0.1"), "--rho is an option of sam, and the optimizer is adamw: add --optimizer sam"),
        (("--adaptive",), "--adaptive is an option of sam, and the optimizer is adamw: add --optimizer sam"),
    ],
)
def test_options_of_sam_without_sam_are_refused(
    finetune: Callable[..., Any], options: tuple[str, ...], message: str
) -> None:
    done = finetune(*options)
    assert (done.status, done.out) == (2, "")
    assert message in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "optimizer adamw there, sam now"),
        (("--optimizer", "sam", "--rho", "0.2"), "rho 0.2 there, 0.05 now"),
        (("--optimizer", "sam", "--adaptive", "--rho", "0.05"), "adaptive True there, False now"),
    ],
)
def test_checkpoint_of_another_optimizer_is_refused(
    finetune: Callable[..., Any], options: tuple[str, ...], message: str
) -> None:
    assert finetune("--epochs", "1", *options, "--output", "out").status == 0
    done = finetune("--epochs", "1", "--optimizer", "sam", "--output", "out", "--resume")
    assert done.status == 2
    assert message in done.err
