from __future__ import annotations

import argparse
import builtins
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import momentumnet
from momentumnet.cli import inspect
from momentumnet.cli.main import program
from momentumnet.errors import ConversionError


def test_module_runs_and_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "momentumnet", "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    for word in ("inspect", "finetune", "bench", "doctor", "examples:", "exit status"):
        assert word in done.stdout


@pytest.mark.parametrize(
    "name",
    [
        *("inspect", "finetune", "evaluate", "predict", "export", "doctor"),
        *("bench depth", "bench step", "bench plan", "bench kernel", "bench peers", "bench init", "bench sam"),
        "bench paper",
    ],
)
def test_every_command_has_help_with_examples(command: Callable[..., Any], name: str) -> None:
    done = command(*name.split(), "--help")
    assert done.status == 0
    assert f"  momentumnet {name}" in done.out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("bench",),
        ("inspect",),
        ("inspect", "resnt50"),
        ("inspect", "resnet18", "--input", "1,3,x"),
        ("inspect", "resnet18", "--colour", "red"),
        ("finetune", "--gamma", "1"),
        ("finetune", "--device", "toaster"),
        ("finetune", "--resume", "--overwrite"),
        ("predict", "run"),
        ("finetune", "--model", "fcn_resnet50"),
        ("finetune", "--data", "no-such-folder"),
        ("finetune", "--epochs", "0"),
        ("finetune", "--epoch", "1"),
        ("bench", "depth", "--depths", "1,2"),
        ("bench", "depth", "--budget", "2000"),
        ("bench", "depth", "--budget", "-1GiB"),
        ("bench", "step", "--network", "resnet51"),
        ("bench", "step", "--dtype", "int8"),
        ("bench", "kernel", "--elements", "0"),
        ("bench", "kernel", "--threads", "two"),
        ("bench", "peers", "--only", "nobody"),
        ("bench", "init", "--models", "resnet21"),
        ("bench", "init", "--methods", "guess"),
        ("bench", "init", "--seeds", "0"),
        ("doctor", "resnet18"),
    ],
)
def test_wrong_arguments_end_with_2(command: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert done.status == 2
    assert done.out == ""
    assert "error:" in done.err


def test_misspelt_model_is_answered_with_close_names(command: Callable[..., Any]) -> None:
    assert "did you mean resnet50" in command("inspect", "resnt50").err


def test_what_begins_as_an_option_is_answered_with_it(command: Callable[..., Any]) -> None:
    assert "--batch 3: no such option (did you mean --batch-size?)" in command("finetune", "--batch", "3").err


def test_an_output_without_these_signs_gets_their_numbers() -> None:
    """As under LC_ALL=C, or in a pipe of Windows: the help of this command holds a root."""
    command = [sys.executable, "-m", "momentumnet", "bench", "depth", "--help"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert r"every \u221an of n blocks" in " ".join(done.stdout.split())


def test_conversion_error_is_one_message_and_1(command: Callable[..., Any]) -> None:
    done = command("inspect", "densenet121", "--input", "1,3,32,32")
    assert done.status == 1
    assert done.out == ""
    assert done.err.startswith("momentumnet: error: no residual stream found in DenseNet")
    assert "Traceback" not in done.err


def test_unexpected_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(inspect, "plan", broken)
    with pytest.raises(ZeroDivisionError):
        command("inspect", "resnet18")


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "plan", interrupted)
    done = command("inspect", "resnet18")
    assert done.status == 130
    assert done.err == "momentumnet: interrupted\n"


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("rich", ("inspect", "resnet18")),
        ("rich", ("finetune",)),
        ("safetensors", ("finetune",)),
        ("sklearn", ("finetune", "--weights", "none")),
        ("matplotlib", ("bench", "depth")),
        ("matplotlib", ("bench", "step")),
        ("matplotlib", ("bench", "kernel")),
        ("matplotlib", ("bench", "peers")),
        ("rich", ("bench", "init")),
    ],
)
def test_missing_extra_is_one_line(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any], missing: str, arguments: tuple[str, ...]
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **options)

    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("momentumnet.")]:
        if name.endswith((".report", ".plots", ".plot", ".weights_file")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    done = command(*arguments)
    assert done.status == 3
    assert done.err.count("\n") == 1
    assert f"needs {missing}" in done.err
    assert 'pip install "momentumnet[cli]"' in done.err


def test_other_missing_module_is_not_blamed_on_the_extra(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere")

    monkeypatch.setattr(inspect, "plan", broken)
    with pytest.raises(ModuleNotFoundError, match="elsewhere"):
        command("inspect", "resnet18")


def test_warnings_are_one_line(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]) -> None:
    import warnings

    def warning(*_: object, **__: object) -> None:
        warnings.simplefilter("always")
        warnings.warn("mind the gap", stacklevel=1)
        raise ConversionError("stop here")

    monkeypatch.setattr(inspect, "plan", warning)
    err = command("inspect", "resnet18").err
    assert err == "momentumnet: warning: mind the gap\nmomentumnet: error: stop here\n"


def test_version(command: Callable[..., Any]) -> None:
    done = command("--version")
    assert (done.status, done.out) == (0, f"momentumnet {momentumnet.__version__}\n")


SCREEN = 40  # lines; what is longer has its options in groups


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


@pytest.mark.parametrize("parser", list(parsers(program())), ids=lambda parser: parser.prog)
def test_help_fits_a_screen_or_is_grouped(parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    lines = parser.format_help().splitlines()
    groups = [group for group in parser._action_groups if group._group_actions]
    largest = max(len(group._group_actions) for group in groups)
    assert len(lines) <= SCREEN or (len(groups) > 2 and largest <= 15)


@pytest.mark.parametrize("words", [["resnet34"], ["--epochs", "1", "resnet34"], ["resnet34", "--compare"]])
def test_a_word_that_stands_alone_is_the_model(words: list[str]) -> None:
    """By position, as `inspect` takes it, wherever it stands; argparse has optional positionals in front only."""
    options = program().parse_args(["finetune", *words])
    assert options.model == "resnet34"
    assert (options.epochs, options.compare) == (1 if "--epochs" in words else 3, "--compare" in words)
    assert program().parse_args(["bench", "step", "timm:test_vit"]).model == "timm:test_vit"
