from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from momentumnet.memory import format_bytes


def test_table_names_the_streams(command: Callable[..., Any]) -> None:
    done = command("inspect", "resnet50", "--input", "1,3,64,64")
    assert done.status == 0
    lines = done.out.splitlines()
    for path, blocks in {"layer1": "2", "layer2": "3", "layer3": "5", "layer4": "2"}.items():
        (line,) = (line for line in lines if path in line)
        assert line.split("│")[2].strip() == blocks
    assert any("whole network" in line for line in lines)


def test_json_is_all_that_stdout_holds(command: Callable[..., Any]) -> None:
    done = command("inspect", "resnet50", "--input", "2,3,64,64", "--gamma", "0.5", "--json")
    values = json.loads(done.out)
    assert (values["model"], values["gamma"], values["others"]) == ("resnet50", "1/2", "keep")
    assert [(row["path"], row["blocks"]) for row in values["streams"]] == [
        ("layer1", 2),
        ("layer2", 3),
        ("layer3", 5),
        ("layer4", 2),
    ]
    assert values["streams"][0]["shape"] == [2, 256, 16, 16]
    # Two blocks checkpointed hold two float32 inputs; the state of a short stream packs to about as much.
    assert values["streams"][0]["checkpointed"] == 2 * 4 * 2 * 256 * 16 * 16
    assert all(row["saved_after"] <= row["checkpointed"] for row in values["streams"])
    saved = sum(row["saved_before"] - row["saved_after"] for row in values["streams"])
    # A tensor at the edge of a stream is kept outside of it too, so the network saves less than its streams.
    assert 0 < values["saved_before"] - values["saved_after"] <= saved
    assert "layer1" in done.err  # the table goes there


def test_recomputing_the_others_saves_more(command: Callable[..., Any]) -> None:
    def saved_after(others: str) -> int:
        done = command("inspect", "resnet18", "--input", "1,3,64,64", "--others", others, "--json")
        return int(json.loads(done.out)["saved_after"])

    assert saved_after("checkpoint") < saved_after("keep")


def test_two_inputs(command: Callable[..., Any]) -> None:
    shape = ("--input", "1,3,128,128")
    assert command("inspect", "raft_small", *shape, *shape).status == 0


def test_input_that_the_model_does_not_accept(command: Callable[..., Any]) -> None:
    done = command("inspect", "resnet18", "--input", "1,1,64,64")
    assert done.status == 2
    assert done.err.startswith("momentumnet: error: resnet18 does not accept the input 1,1,64,64: ")
    assert done.err.count("\n") == 1


def test_memory_to_spare_is_a_budget(command: Callable[..., Any]) -> None:
    options = ("inspect", "resnet18", "--input", "1,3,64,64", "--json")
    least = json.loads(command(*options, "--budget", "least").out)
    spared = json.loads(command(*options, "--spare", "1MiB").out)
    assert spared["budget"] == least["peak"] + 2**20
    assert least["peak"] < spared["peak"] <= spared["budget"]


def test_choices_for_a_budget(command: Callable[..., Any]) -> None:
    done = command("inspect", "resnet18", "--input", "2,3,32,32", "--budget", "least", "--json")
    assert done.status == 0
    values = json.loads(done.out)
    assert values["peak"] <= values["stored_peak"]
    assert f"measured {format_bytes(values['measured_peak'])}, for the least" in done.err
    assert [unit["names"] for unit in values["units"]][-2:] == [["layer3"], ["layer4"]]
    assert "reversible" in done.err or "checkpointed" in done.err or "stored" in done.err


def test_a_budget_that_nothing_fits(command: Callable[..., Any]) -> None:
    done = command("inspect", "resnet18", "--input", "2,3,32,32", "--budget", "1MiB")
    assert done.status != 0
    assert "no choice fits a budget of 1.00 MiB" in done.err
    done = command("inspect", "resnet18", "--budget", "1GiB", "--spare", "1MiB")
    assert done.status != 0
    assert "leave out one of the two" in done.err
    done = command("inspect", "resnet18", "--spare", "1MiB", "--others", "checkpoint")
    assert done.status != 0
    assert "leave out --others" in done.err


def test_gradients_that_are_there_before(command: Callable[..., Any]) -> None:
    options = ("inspect", "resnet18", "--input", "2,3,32,32", "--json", "--gradients")
    anew, present = (json.loads(command(*options, how, "--budget", "least").out) for how in ("anew", "present"))
    assert (anew["gradients"], present["gradients"]) == ("anew", "present")
    assert present["peak"] > anew["peak"]
    done = command(*options, "present")
    assert done.status == 2
    assert "--gradients says what --budget and --spare count" in done.err


def test_the_largest_batch_within_a_budget(command: Callable[..., Any]) -> None:
    least = command("inspect", "resnet18", "--input", "4,3,64,64", "--budget", "least", "--json")
    budget = f"{int(json.loads(least.out)['peak'] / 970)}KiB"
    done = command("inspect", "resnet18", "--input", "1,3,64,64", "--budget", budget, "--largest-batch", "--json")
    values = json.loads(done.out)
    assert 4 <= values["largest_batch"] <= 8
    assert values["peak"] <= values["budget"]
    without = command("inspect", "resnet18", "--largest-batch")
    assert without.status != 0
    assert "--largest-batch needs the memory that a step may take" in without.err


def test_pictures(command: Callable[..., Any], tmp_path: Path) -> None:
    options = ("inspect", "resnet18", "--input", "2,3,32,32")
    for name, more in {"streams.svg": (), "step.svg": ("--budget", "least")}.items():
        done = command(*options, *more, "--plot", str(tmp_path / name))
        assert f"Written: {tmp_path / name}" in done.out, done.err
        assert (tmp_path / name).read_text().count("<path") > 10
    assert command(*options, "--plot", "streams.txt").status == 2
    assert command(*options, "--plot", str(tmp_path / "nowhere" / "streams.png")).status == 2
    assert "leave out one of the two" in command(*options, "--check", "--plot", "streams.png").err
