from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from momentumnet.bench.networks.language_models import CausalDecoder, LlamaDecoder
from momentumnet.bench.networks.measured import Network, family
from momentumnet.cli.bench import step
from momentumnet.files import whole_file


def _language_model(kind: type[CausalDecoder] | type[LlamaDecoder]) -> Network:
    return Network(partial(kind, depth=3, width=64, length=8, vocabulary=20), partial(torch.randint, 20, (2, 8)))


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "mlp-200": family("mlp", 12),
        "gpt-12": _language_model(CausalDecoder),
        "llama-4": _language_model(LlamaDecoder),
    }
    monkeypatch.setattr(step, "NETWORKS", small)


@pytest.mark.parametrize("dtype", [(), ("--dtype", "bfloat16")], ids=["float32", "bfloat16"])
def test_table_json_and_plot(command: Callable[..., Any], dtype: tuple[str, ...]) -> None:
    networks = [text for name in ("gpt-12", "llama-4", "mlp-200") for text in ("--network", name)]
    done = command("bench", "step", *networks, "--repeats", "1", "--output", "out", "--json", *dtype)
    assert done.status == 0
    values = json.loads(done.out)
    assert whole_file.read_json(Path("out", "step.json")) == values
    rows = {(row["network"], row["method"]): row for row in values["rows"]}
    assert len(rows) == 3 * 9
    for network in ("gpt-12", "llama-4", "mlp-200"):
        assert rows[network, "stored"]["time_to_stored"] == 1
        assert rows[network, "checkpoint"]["time_to_checkpoint"] == 1
        for method in (
            "checkpoint",
            "checkpoint √n",
            "momentum 9/10",
            "momentum 1/8",
            "momentum 1/8, others kept",
        ):
            assert rows[network, method]["gradient_error"] == 0
        assert rows[network, "momentum 9/10 float"]["gradient_error"] > 0
    for network, elements in (("gpt-12", 3 * 2 * 8 * 64), ("llama-4", 3 * 2 * 8 * 64), ("mlp-200", 12 * 256 * 64)):
        row = rows[network, "checkpoint"]
        assert row["bytes_per_element_and_block"] == row["saved_bytes"] / elements
    assert rows["mlp-200", "momentum 9/10"]["memory_to_stored"] < rows["mlp-200", "checkpoint"]["memory_to_stored"] < 1
    # 12 blocks at 3 bits each: float32's 24 bits are gone.
    failed = rows["mlp-200", "momentum 1/8 float"]
    assert "could not be reconstructed" in failed.get("error", "") or failed["gradient_error"] > 0.1
    if not dtype:  # the input of every block, but of the first; the output and its gradient; the loss
        kept = 4 * (11 * 256 * 64 + 2 * 256 * 64 + 2)
        assert rows["mlp-200", "checkpoint"]["saved_bytes"] == pytest.approx(kept, rel=0.01)
    assert Path("out", "step.png").read_bytes().startswith(b"\x89PNG")
    assert "| mlp-200 | stored |" in Path("out", "step.md").read_text()


def test_chosen_networks_and_resume(command: Callable[..., Any]) -> None:
    options = ("bench", "step", "--repeats", "1", "--output", "out", "--json", "--gammas", "1/2")
    first = json.loads(command(*options, "--network", "mlp-200").out)["rows"]
    assert {row["network"] for row in first} == {"mlp-200"}
    both = command(*options, "--network", "mlp-200", "--network", "gpt-12", "--resume")
    assert json.loads(both.out)["rows"][: len(first)] == first


def test_compiled_and_offloaded_methods(command: Callable[..., Any]) -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler, and this machine has none")
    options = ("--compiled", "--offloaded", "--network", "mlp-200", "--gammas", "1/2", "--repeats", "1")
    done = command("bench", "step", "--output", "out", "--json", *options)
    rows = {row["method"]: row for row in json.loads(done.out)["rows"]}
    assert len(rows) == 3 + 3 + 1 + 4 + 1
    assert rows["offloaded"]["gradient_error"] == 0
    for method in ("stored, compiled blocks", "momentum 1/2, compiled blocks", "compiled, half the activations"):
        assert 0 < rows[method]["gradient_error"] < 1e-5
        assert rows[method]["step_seconds"] > 0
    refused = command("bench", "step", "--output", "out", "--resume", *options[1:])
    assert refused.status != 0
    assert "was measured with other settings" in refused.err
