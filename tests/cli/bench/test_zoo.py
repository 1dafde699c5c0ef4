from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from momentumnet.cli.bench import zoo
from momentumnet.files import whole_file


def test_table_and_json(command: Callable[..., Any]) -> None:
    options = ("--library", "torchvision", "--output", "out", "--json")
    done = command("bench", "zoo", "alexnet", "resnet18", *options)
    assert done.status == 0
    values = json.loads(done.out)
    assert whole_file.read_json(Path("out", "zoo.json")) == values
    rows = {row["model"]: row for row in values["rows"]}
    assert rows["resnet18"]["streams"] == [["layer1", 2]]
    assert rows["resnet18"]["gradient_error"] <= 1e-5
    assert rows["alexnet"]["refusal"]
    assert "| resnet18 | postact |  | 2 | 2 + 3 of 8 |" in Path("out", "zoo.md").read_text()
    again = command("bench", "zoo", "resnet18", *options, "--resume")
    assert json.loads(again.out)["rows"] == values["rows"]


def test_names_that_are_none(command: Callable[..., Any]) -> None:
    done = command("bench", "zoo", "resnet19", "--library", "torchvision")
    assert done.status == 2
    assert "'resnet19'" in done.err
    assert "resnet18" in done.err


def test_libraries_that_are_not_there(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "missing", lambda libraries: [name for name in libraries if name != "torchvision"])
    done = command("bench", "zoo", "--library", "timm")
    assert done.status == 3
    assert "momentumnet[timm]" in done.err
    done = command("bench", "zoo", "alexnet", "--output", "out")
    assert done.status == 0
    assert "momentumnet[hf]" in done.out


def test_deeper_models(command: Callable[..., Any]) -> None:
    pytest.importorskip("transformers")
    options = ("LlamaForCausalLM", "--library", "transformers", "--output", "out", "--json")
    done = command("bench", "zoo", *options, "--layers", "5")
    assert done.status == 0
    values = json.loads(done.out)
    assert values["settings"]["layers"] == 5
    assert [(row["layers"], [count for _, count in row["streams"]]) for row in values["rows"]] == [(5, [5])]
    assert "at least 5 layers" in Path("out", "zoo.md").read_text()
    other = command("bench", "zoo", *options, "--layers", "6", "--resume")
    assert other.status != 0
    assert "other settings" in other.err


def test_torchvision_has_no_deeper_models(command: Callable[..., Any]) -> None:
    done = command("bench", "zoo", "--layers", "12", "--library", "torchvision")
    assert done.status == 2
    assert "--layers" in done.err
    assert command("bench", "zoo", "--layers", "0").status == 2
