"""What was trained is used: evaluate, predict and export, beside the stock network at gamma 0."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models import get_model

import momentumnet as mn
from momentumnet.cli.confusion_plot import plot_confusion
from momentumnet.cli.evaluate import measures
from momentumnet.files import whole_file
from momentumnet.finetuning.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from momentumnet.finetuning.trained import write_config
from momentumnet.finetuning.weights_file import save_weights

MODEL = "mobilenet_v3_small"


@pytest.fixture
def stock(photos: Path) -> nn.Module:
    """The network whose run is the folder ``run``, trained on ``photos``."""
    torch.manual_seed(0)
    model = get_model(MODEL, num_classes=2)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None
    model(torch.rand(16, 3, 32, 32))  # or else nothing of an image would come through to the head
    nn.init.normal_(model.classifier[-1].weight)
    leave_a_run(model.eval(), photos, gamma="0")
    return model


def leave_a_run(model: nn.Module, photos: Path, *, gamma: str) -> None:
    network = mn.convert(model, torch.rand(2, 3, 32, 32), gamma=0 if gamma == "0" else 0.125, inplace=False)
    Path("run").mkdir(exist_ok=True)
    settings = {"model": MODEL, "data": str(photos)}
    write_config(Path("run"), network, ("bright", "dark"), Preprocessing(32), settings)
    save_weights(Path("run", "model.safetensors"), network)


def stock_outputs(model: nn.Module, path: Path) -> Tensor:
    prepare = transforms.Compose(
        [transforms.Resize(32), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )
    with torch.no_grad():
        outputs: Tensor = model(prepare(Image.open(path).convert("RGB"))[None]).softmax(dim=1)[0]
    return outputs


def test_predictions_are_those_of_the_stock_network(
    command: Callable[..., Any], stock: nn.Module, photos: Path
) -> None:
    files = sorted(photos.glob("val/*/*.png"))[2:5]
    done = command("predict", "run", *map(str, files), "--json", "--batch-size", "2")
    assert done.status == 0
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["file"] for line in lines] == [str(file) for file in files]
    for line, file in zip(lines, files, strict=True):
        expected = stock_outputs(stock, file)
        assert list(line["probabilities"]) == ["bright", "dark"]
        torch.testing.assert_close(torch.tensor(list(line["probabilities"].values())), expected, rtol=1e-4, atol=1e-5)
        assert line["class"] == ("bright", "dark")[int(expected.argmax())]
        assert line["probability"] == max(line["probabilities"].values())
    text = command("predict", "run", str(files[0])).out
    assert text.startswith(f"{files[0]}: {lines[0]['class']} {lines[0]['probability']:.1%}, ")


def test_evaluation_counts_what_the_stock_network_says(
    command: Callable[..., Any], stock: nn.Module, photos: Path
) -> None:
    done = command("evaluate", "run", "--json")
    assert done.status == 0
    values = json.loads(done.out)
    expected = torch.zeros(2, 2, dtype=torch.int64)
    for label, name in enumerate(("bright", "dark")):
        for file in photos.glob(f"val/{name}/*.png"):
            expected[label, int(stock_outputs(stock, file).argmax())] += 1
    assert values["confusion"] == expected.tolist()
    assert values["accuracy"] == float(expected.trace() / 8)
    assert whole_file.read_json(Path("run", "evaluation.json")) == values
    assert Image.open("run/confusion.png").size > (100, 100)
    other = command("evaluate", "run", "--data", str(photos / "train"), "--json")  # a folder of classes itself
    assert json.loads(other.out)["images"] == 16
    table = command("evaluate", "run").out
    for word in ("bright", "dark", "precision", "Accuracy on 8 images"):
        assert word in table


def test_what_cannot_be_written_is_shown(command: Callable[..., Any], stock: nn.Module) -> None:
    Path("run", "evaluation.json").mkdir()  # as good as a folder that may only be read, of which root knows nothing
    done = command("evaluate", "run", "--json")
    assert done.status == 3
    assert "evaluation.json cannot be written" in done.err
    assert json.loads(done.out)["images"] == 8


def test_the_picture_of_thousands_of_classes_looks_at_each_row_a_few_times(tmp_path: Path) -> None:
    looked = Counter[int]()

    class Row(list[int]):
        def __iter__(self) -> Iterator[int]:
            looked[id(self)] += 1
            return super().__iter__()

    rows = [Row(int(place == row) for place in range(50)) for row in range(50)]
    plot_confusion(rows, [str(place) for place in range(50)], tmp_path / "counts.png", title="")
    assert max(looked.values(), default=0) <= 3


def test_measures_by_hand() -> None:
    found = measures(torch.tensor([[3, 1, 0], [2, 2, 0], [0, 0, 0]]), ("a", "b", "c"))
    assert found["accuracy"] == 5 / 8
    assert [row["accuracy"] for row in found["classes"]] == [3 / 4, 2 / 4, None]
    assert [row["precision"] for row in found["classes"]] == [3 / 5, 2 / 3, None]


def test_export_is_the_stock_network_to_the_bit(command: Callable[..., Any], stock: nn.Module, photos: Path) -> None:
    done = command("export", "run", "--output", "stock.pt")
    assert done.status == 0
    assert "nearly the same" not in done.out
    exported = get_model(MODEL, num_classes=2).eval()
    exported.load_state_dict(torch.load("stock.pt", weights_only=True))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(exported(x), stock(x))
    leave_a_run(get_model(MODEL, num_classes=2), photos, gamma="1/8")
    assert "trained at gamma 1/8: the stock one computes nearly the same only" in command("export", "run").out
    assert Path("run", f"{MODEL}.pt").is_file()


def test_damaged_runs_and_what_is_none_are_refused(command: Callable[..., Any], stock: nn.Module, photos: Path) -> None:
    commands = (("evaluate",), ("predict", "a.png"), ("export",))
    for name, *files in commands:
        done = command(name, ".", *files)
        assert done.status == 2
        assert ". is not the folder of a run: it holds no config.json" in done.err
    for file in ("model.safetensors", "config.json"):
        path = Path("run", file)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        for name, *files in commands:
            done = command(name, "run", *files)
            assert (done.status, done.out) == (2, "")
            assert f"run/{file}" in done.err
            assert "damaged" in done.err


def test_other_classes_are_refused(command: Callable[..., Any], stock: nn.Module, photos: Path) -> None:
    (photos / "val" / "dark").rename(photos / "val" / "grey")
    done = command("evaluate", "run")
    assert done.status == 2
    assert "holds other classes than run was trained on: dark, grey are in one of them only" in done.err


@pytest.mark.parametrize("asked", [("evaluate", "run"), ("predict", "run", "photos/val/dark/0.png", "--json")])
def test_nan_is_no_class(asked: tuple[str, ...], command: Callable[..., Any], stock: nn.Module, photos: Path) -> None:
    """The first class was given for every image, with an accuracy, or with a probability of NaN."""
    nn.init.constant_(stock.classifier[-1].bias, torch.nan)
    leave_a_run(stock, photos, gamma="0")
    finished = command(*asked)
    assert finished.status == 1
    assert finished.out == ""
    assert "puts out NaN: its training has diverged" in finished.err
