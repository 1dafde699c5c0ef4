from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from momentumnet.cli.config_file import expanded
from momentumnet.cli.main import program

needs_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python reads TOML from 3.11 on")


@needs_toml
def test_options_of_the_file_are_those_of_the_command_line_which_win() -> None:
    Path("run.toml").write_text('model = "resnet50"\nbatch_size = 8\nlr = 0.01\nadaptive = true\ncompare = false\n')
    for config in (["--config", "run.toml"], ["--config=run.toml"]):
        options = program().parse_args(expanded(["finetune", "--lr", "0.5", *config]))
        assert (options.model, options.batch_size, options.lr) == ("resnet50", 8, 0.5)
        assert (options.adaptive, options.compare) == (True, False)
    assert expanded(["finetune", "--lr", "0.5"]) == ["finetune", "--lr", "0.5"]


@needs_toml
@pytest.mark.parametrize("words", [["resnet34"], ["--epochs", "1", "resnet34"], ["--model", "resnet34"]])
def test_a_model_of_the_command_line_wins_with_or_without_its_flag(words: list[str]) -> None:
    Path("run.toml").write_text('model = "resnet50"\nepochs = 2\n')
    options = program().parse_args(expanded(["finetune", "--config", "run.toml", *words]))
    assert (options.model, options.epochs) == ("resnet34", 1 if "--epochs" in words else 2)


@needs_toml
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model = ", "run.toml is not TOML"),
        ("lr = [1, 2]", "run.toml holds lr = [1, 2]; an option has a text, a number or true"),
        ('config = "more.toml"', "names a further --config"),
        ("colour = 1", "--colour=1: no such option"),
        ("colour = false", "--colour=false: no such option"),
        ("augment = false", "argument --augment: invalid choice: 'false'"),  # it was taken for the default, flip
        ("epochs = false", "argument --epochs: 'false' is not an integer"),
        ("output = true\nlr = 0", "argument --lr"),  # not the next word as the folder
        ('compare = "no"', "argument --compare: 'no' is neither true nor false: in a file compare = true"),
        ("quiet = 1", "argument --quiet: '1' is neither true nor false"),
        ('gamma = "2"', "argument --gamma"),
    ],
)
def test_files_that_are_none_are_refused(command: Callable[..., Any], content: str, message: str) -> None:
    Path("run.toml").write_text(content)
    done = command("finetune", "--config", "run.toml")
    assert (done.status, done.out) == (2, "")
    assert message in done.err


def test_a_switch_of_the_command_line_takes_no_value(command: Callable[..., Any]) -> None:
    done = command("finetune", "--quiet=no")
    assert (done.status, done.out) == (2, "")
    assert "argument --quiet: a switch takes no value, and 'no' is given; write --quiet, or leave it out" in done.err


@needs_toml
def test_file_that_is_not_there(command: Callable[..., Any]) -> None:
    done = command("finetune", "--config", "run.toml")
    assert done.status == 2
    assert done.err == "momentumnet: error: --config run.toml cannot be read: No such file or directory\n"


@needs_toml
def test_a_file_is_not_passed_over(command: Callable[..., Any]) -> None:
    Path("run.toml").write_text("colour = 1\n")
    done = command("finetune", "--conf", "run.toml")
    assert (done.status, done.out) == (2, "")
    assert "--conf run.toml: no such option (did you mean --config?)" in done.err
    twice = command("finetune", "--config", "other.toml", "--config=run.toml")
    assert (twice.status, twice.out) == (2, "")
    assert "--config is given 2 times" in twice.err
