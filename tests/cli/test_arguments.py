from __future__ import annotations

import argparse
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from momentumnet.cli import arguments
from momentumnet.planner.machine.budget import bytes_of


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.9", Fraction(9, 10)), ("1/8", Fraction(1, 8)), ("0", Fraction(0)), ("0.125", Fraction(1, 8))],
)
def test_gamma(text: str, value: Fraction) -> None:
    assert arguments.gamma(text) == value


def test_gammas() -> None:
    assert arguments.gammas("0.9,1/8") == [Fraction(9, 10), Fraction(1, 8)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("512MiB", 512 * 2**20),
        ("4GB", 4 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("80 gb", 80 * 10**9),
        ("100B", 100),
        ("9007199254740993B", 9007199254740993),
        pytest.param(f"{'9' * 400}B", int("9" * 400), id="400 digits"),
    ],
)
def test_sizes_are_those_of_budgets_in_python(text: str, value: int) -> None:
    assert arguments.byte_count(text) == arguments.budget(text) == bytes_of(text) == value


def test_shape() -> None:
    assert arguments.shape("1,3,224,224") == (1, 3, 224, 224)
    assert arguments.shape_text((1, 3, 224, 224)) == "1,3,224,224"


def test_depths_are_sorted_and_distinct() -> None:
    assert arguments.depths("32,8,8,16") == [8, 16, 32]


def test_data_source(tmp_path: Path) -> None:
    assert arguments.data_source("digits") == "digits"
    assert arguments.data_source(str(tmp_path)) == str(tmp_path)


def test_device() -> None:
    assert arguments.device("cpu") == torch.device("cpu")


def test_classifier_and_any_model() -> None:
    assert arguments.classifier("resnet18") == "resnet18"
    assert arguments.any_model("raft_small") == "raft_small"


@pytest.mark.parametrize(
    ("convert", "text", "message"),
    [
        (arguments.gamma, "much", "not a number"),
        (arguments.gamma, "1/0", "not a number"),
        (arguments.gamma, "1", "not in"),
        (arguments.gamma, "-0.1", "not in"),
        (arguments.gammas, "0.9,2", "not in"),
        (arguments.shape, "1,3,0", "not positive"),
        (arguments.shape, "1;3", "not an integer"),
        (arguments.depths, "1,8", "smallest depth is 2"),
        (arguments.positive, "0", "not positive"),
        (arguments.byte_count, "2000", "has no unit; write for example 512MiB or 2GiB"),
        (arguments.byte_count, "4XB", "is no size"),
        (arguments.byte_count, "0MiB", "is no size"),
        (arguments.byte_count, "0.5B", "is no size"),
        (arguments.byte_count, "-4GB", "is no size"),
        (arguments.byte_count, "least", "is no size"),
        (arguments.budget, "leest", "is no size.*'least' or 'device'"),
        (arguments.positive, "1.5", "not an integer"),
        (arguments.whole, "-1", "-1 is negative, and 0 is the least"),
        (arguments.seed, "-1", "0 is the least"),
        (arguments.wholes, "0,-2", "-2 is negative"),
        (arguments.learning_rate, "0", "not a positive number"),
        (arguments.learning_rate, "inf", "not a positive number"),
        (arguments.learning_rate, "nan", "not a positive number"),
        (arguments.learning_rate, "fast", "not a number"),
        (arguments.data_source, "nowhere", "neither a folder nor one of digits, cifar10, cifar100"),
        (arguments.device, "toaster", "not a device"),
        (arguments.device, "cuda:99", "not a device"),
        (arguments.classifier, "raft_small", "not an image classification model"),
        (arguments.any_model, "resnet5000", "did you mean"),
        (arguments.any_model, "qqqqqqqq", "lists them all"),
    ],
)
def test_refusals_say_what_was_expected(convert: Callable[[str], object], text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        convert(text)
