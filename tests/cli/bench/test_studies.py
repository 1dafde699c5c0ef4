"""What all studies have in common: runs that go on, trainings that diverge, and options that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.bench.studies import STUDIES, rows, run


@pytest.mark.parametrize("name", STUDIES)
def test_a_run_goes_on_takes_more_rows_and_refuses_those_of_other_settings(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    study = STUDIES[name]
    study.simplified(monkeypatch)
    whole = rows(run(command, name, *study.few))
    assert len(whole) == study.rows
    real, trained = study.training.row, []

    def counted(self: Any, advance: Callable[[], object]) -> dict[str, Any]:
        row: dict[str, Any] = real(self, advance)
        trained.append(self)
        if len(trained) == study.rows:
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(study.training, "row", counted)
    stopped = run(command, name, *study.few, "--restart")
    assert stopped.status == 130
    assert "the same command goes on after the rows that are done" in stopped.err
    resumed = run(command, name, *study.few)
    assert f"{study.rows - 1} of {study.rows} rows are done already" in resumed.err
    assert rows(resumed) == whole
    assert len(trained) == study.rows + 1
    more = run(command, name, *study.few, *study.more)
    assert f"{study.rows} of {study.all_rows} rows are done already" in more.err
    found = rows(more)
    assert len(found) == study.all_rows
    assert [row for row in found if row in whole] == whole
    assert len(trained) == 1 + study.all_rows
    refused = run(command, name, *study.few, *study.other)
    assert (refused.status, "was measured with other settings" in refused.err) == (2, True)
    assert "add --restart to forget it" in refused.err
    assert rows(run(command, name, *study.few))[: study.rows] == whole  # the others stand behind
    assert [row for row in rows(run(command, name, *study.few, *study.other, "--restart")) if row not in whole]


def test_rows_stand_in_the_order_of_the_command_whenever_they_were_done(command: Callable[..., Any]) -> None:
    study = STUDIES["init"]
    rows(run(command, "init", *study.few))
    found = rows(run(command, "init", *study.few, *study.more))
    assert [(row["method"], row["seed"]) for row in found] == [(m, s) for m in ("kaiming", "constant") for s in (0, 1)]


@pytest.mark.parametrize(
    ("name", "arguments", "error", "lines"),
    [
        (
            "init",
            ("--models", "resnet8_bn", "--methods", "kaiming,constant"),
            "diverged: loss nan in step 2 of epoch 1",
            ("| resnet8_bn | kaiming | fails | fails | 0 of 1 |",),
        ),
        (
            "sam",
            ("--models", "resnet8_bn", "--noise", "20", "--methods", "sam,sgd"),
            "diverged: loss nan in step 2 of epoch 1",
            (
                "| sam | 4 | fails | fails | fails | fails |  | 0 of 1 |",
                "resnet8_bn, 20 % wrong labels, sam, seed 0: diverged: loss nan",
            ),
        ),
        (
            "sharpness",
            ("--models", "resnet8_bn", "--methods", "sgd,sam", "--rhos", "0.05"),
            "diverged: loss nan in step 2 of epoch 1",
            (
                "| sam | 4 | fails | fails | fails | fails | fails | fails | fails | 0 of 1 |",
                "resnet8_bn, sam, rho 0.05, seed 0: diverged: loss nan",
            ),
        ),
        (
            "quality",
            ("--models", "vit2x16", "--methods", "original,continued", "--adam-lr", "1e30"),
            "diverged: loss nan in ",
            (
                "| vit2x16 | continued |  |  | fails | fails | fails |  |  | 0 of 1 |",
                "vit2x16, continued, seed 0: diverged: loss nan",
            ),
        ),
        (
            "gamma-schedule",
            ("--methods", "momentum", "--finals", "1/2,9/10", "--lengths", "1", "--text-lr", "1e30"),
            "diverged: loss nan in ",
            (
                "| 9/10 | in all steps | fails | fails | fails | fails | fails | 0 of 1 |",
                "decoder2, momentum, to 9/10, in all steps, seed 0: diverged: loss nan",
            ),
        ),
    ],
    ids=lambda value: value if value in STUDIES else "",
)
def test_row_that_diverges_is_shown_and_the_others_go_on(
    command: Callable[..., Any], name: str, arguments: tuple[str, ...], error: str, lines: tuple[str, ...]
) -> None:
    done = run(command, name, *arguments, "--seeds", "1", "--lr", "1e30")
    errors = [row["error"] for row in rows(done)]
    assert len(errors) == 2
    assert all(own.startswith(error) for own in errors)
    table = Path("out", f"{name}-digits.md").read_text()
    for line in lines:
        assert line in table


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("init", "--models resnet20,resnet21", "there is no resnet of depth 21; there are resnetN with N = 6 n + 2"),
        ("init", "--methods kaiming,xavier", "'xavier' is not a method; there are kaiming, constant, warmup, metainit"),
        ("init", "--data missing.npz", "'missing.npz' is neither digits, cifar10 nor a .npz file that exists"),
        ("init", "--data cifar10", "CIFAR-10 could not be downloaded (no network)"),
        ("init", "--train-samples 31", "31 training images are less than one batch of 32"),
        ("sam", "--methods sgd,adam", "'adam' is not a method; there are sgd, sgd_2x, extragradient, sam, asam"),
        ("sam", "--noise 20,100", "100 is not at least 0 and less than 100 percent"),
        ("sam", "--noise some", "'some' is not a number; write for example 20"),
        ("sam", "--rho -1", "-1 is not a finite number of at least 0"),
        ("sam", "--asam-rho wide", "'wide' is not a number"),
        ("sharpness", "--methods sgd,adam", "'adam' is not a method; there are sgd, sgd_2x, extragradient, sam, sgd_c"),
        ("sharpness", "--noise 100", "100 is not at least 0 and less than 100 percent"),
        ("sharpness", "--noise some", "'some' is not a number; write for example 20"),
        ("sharpness", "--rho -1", "-1 is not a finite number of at least 0"),
        ("sharpness", "--rhos 0,inf", "inf is not a finite number of at least 0"),
        ("sharpness", "--gamma 1", "1 is not in [0, 1)"),
        ("sharpness", "--ascents 0", "0 is not positive"),
        ("sharpness", "--measurements 3", "--measurements 3 are more than 2 epochs; choose fewer, or more --epochs"),
        ("sharpness", "--probes 65", "--probes 65 are more than the 64 training images; choose fewer"),
        ("quality", "--models vgg8", "vgg8 has no residual blocks; take resnetN, resnetN_bn, vitN or vitNxWIDTH"),
        ("quality", "--models resnet21", "there is no resnet of depth 21"),
        ("quality", "--models vit4x100", "100 features make no whole heads; give a multiple of 64, or less than 64"),
        ("quality", "--methods scratch,best", "'best' is not a method; there are original, scratch, continued, conv"),
        ("quality", "--models gpt2", "--task images: 'gpt2' is not a network of this benchmark"),
        ("quality", "--task text --models vit2", "--task text: 'vit2' is not a network for text; there are gptN"),
        ("quality", "--text book.txt", "--text book.txt is read with --task text only"),
        ("quality", "--task text --data cifar10", "--data cifar10 holds images; with --task text give --text FILE"),
        ("quality", "--task text --text none.txt", "No such file or directory: 'none.txt'"),
        ("quality", "--task text --characters 500", "the last tenth holds no window of 64; give 640 or more"),
        ("quality", "--task text --characters 2000", "27 windows of 64 characters are less than one batch of 32"),
        ("quality", "--finetune-scale 0", "0 is not a positive number"),
        ("gamma-schedule", "--models decoder1", "'decoder1' is not a network of this benchmark; there are resnetN_bn"),
        ("gamma-schedule", "--models vgg11_bn", "'vgg11_bn' is not a network of this benchmark"),
        ("gamma-schedule", "--models resnet8_bn", "with N = 6 n + 2 from 14 on"),
        ("gamma-schedule", "--methods bdia", "'bdia' is not a method; there are momentum, dr2net"),
        ("gamma-schedule", "--finals 1/2,1", "1 is not in [0, 1)"),
        ("gamma-schedule", "--lengths 0,2", "2 is not in [0, 1]: 0 is at once, 1 all steps"),
        ("gamma-schedule", "--lengths half", "'half' is not a share; write for example 0,1/4,1/2,1"),
        ("gamma-schedule", "--text nothing.txt", "there is no file 'nothing.txt'"),
        ("gamma-schedule", "--window 1", "a --window of 1 bytes has no next byte; give 2 or more"),
        ("gamma-schedule", "--window 100000", "less than 10 windows of 100000"),
        ("gamma-schedule", "--methods dr2net --finals 0", "dr2net alone has no final value 0"),
        ("gamma-schedule", "--shape geometric --finals 0 --lengths 1", "--shape geometric has no final value 0"),
        ("gamma-schedule", "--shape geometric --start 0", "multiplies gamma from step to step: give a --start above 0"),
        ("gamma-schedule", "--shape stepwise", "invalid choice: 'stepwise'"),
        ("gamma-schedule", "--batch-size 60", "of the first half of the classes, on which ResNets are pretrained, are"),
        ("init-text", "curve", "'curve' is none of curves, optimizers, cost"),
        ("init-text", "--networks mid-norm", "'mid-norm' is none of post-norm, pre-norm, norm-free"),
        ("init-text", "--methods plain,fixup", "'fixup' is none of plain, warmup, gradinit, metainit, tfixup"),
        ("init-text", "--rates 0.1,fast", "'fast' is not a number"),
        ("init-text", "--taus 0", "0 is not a positive number"),
        (
            "init-text",
            "--warmup-steps 4",
            "--warmup-steps 4 are among the --steps 4 of a training and have to be",
        ),
        ("init-text", "--length 400", "foxes.txt: its last tenth, which is for validation, has 90 characters"),
        ("init-text", "--text nowhere.txt", "No such file or directory: 'nowhere.txt'"),
        ("init-text", "--methods tfixup --networks pre-norm", "none of --methods tfixup is for --networks pre-norm"),
        ("lottery", "--rewind-epochs 2", "leaves nothing of 2 epochs"),
        ("lottery", "--fraction 1.5", "not between 0 and 1"),
        ("lottery", "--rewind-epochs -1", "is negative"),
        ("lottery", "--warmup-epochs 2", "--warmup-epochs 2 leaves nothing of 2 epochs"),
        ("lottery", "--warmup-epochs 0,x", "'x' is not an integer"),
        ("lottery", "--dense-epochs 1,3", "--dense-epochs 3 is more than the 2 epochs"),
        ("lottery", "--dense-epochs 0", "0 is not positive"),
        ("lottery", "--epochs 4 --dense-epochs 1 --rewind-epochs 0,2", "ends before epoch 2"),
        ("lottery", "--lr 0.1,0", "0 is not a positive number"),
        ("lottery", "--controls none", "random-mask"),
        ("lottery", "--methods warmup", "'warmup' is not a method"),
        ("lottery", "--models lenet5", "lenet300"),
    ],
)
def test_options_that_cannot_be_are_answered_with_what_can(
    command: Callable[..., Any], name: str, arguments: str, message: str
) -> None:
    done = run(command, name, *arguments.split())
    assert done.status == 2
    assert message in " ".join(done.err.split())
