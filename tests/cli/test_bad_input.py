"""Bad input gets one line and its exit status; images of all kinds are read as what they show."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from momentumnet.cli import inspect
from momentumnet.finetuning import image_folder
from momentumnet.finetuning.images import BrokenImageError, Preprocessing, read_image

OPTIONS = ("finetune", "--model", "mobilenet_v3_small", "--image-size", "32", "--batch-size", "4", "--epochs", "1")


def one_line(done: Any, status: int) -> str:
    assert done.status == status
    assert "Traceback" not in done.err
    lines: list[str] = [line for line in done.err.splitlines() if "warning" not in line]
    assert len(lines) == 1, lines
    return lines[0]


def test_kinds_of_images_are_read_as_what_they_show(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
    plain = Image.fromarray(grey)
    colour = np.stack([grey, grey.T, grey[::-1]], axis=-1)
    pixels = {
        "grey.png": plain,
        "16-bit.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "palette.png": plain.convert("RGB").quantize(64),
        "two-bands.png": Image.merge("LA", (plain, Image.new("L", (8, 8), 255))),
        "float.tiff": Image.fromarray(grey.astype(np.float32) / 255),
    }
    for name, image in pixels.items():
        image.save(tmp_path / name)
        read = read_image(tmp_path / name)
        assert (read.mode, read.size) == ("RGB", (8, 8)), name
        expected = np.repeat(grey[..., None], 3, axis=-1).astype(int)
        assert np.abs(np.asarray(read).astype(int) - expected).max() <= 1, name
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(np.asarray(read_image(tmp_path / "cmyk.jpg")).astype(int) - colour).mean() < 12
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(read_image(tmp_path / "clear.png")).min() == 255


def broken_files(folder: Path) -> dict[str, str]:
    """Files that hold no image that can be read, and what is said of them."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "cut-off.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not an image")
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    return {
        "cut-off.jpg": "truncated",
        "empty.png": "an empty file",
        "text.png": "cannot identify image file",
        "huge.png": "more than 89478485 pixels",
    }


def test_files_that_hold_no_image_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    no_files = {"missing.png": "No such file or directory$", "folder.png": "Is a directory$"}
    for name, message in (broken_files(tmp_path) | no_files).items():
        with pytest.raises(BrokenImageError, match=rf"{tmp_path}/{name}: .*{message}"):
            read_image(tmp_path / name)


def test_images_of_which_pillow_only_warns_are_refused(tmp_path: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(tmp_path / "large.png")
    with pytest.raises(BrokenImageError, match=r"large\.png: more than 89478485 pixels"):
        read_image(tmp_path / "large.png")


def test_broken_files_of_a_folder_are_one_line_or_skipped_and_counted(
    command: Callable[..., Any], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = broken_files(photos / "train" / "dark")
    options = (*OPTIONS, "--weights", "none", "--data", str(photos))
    found = one_line(command(*options), 2)
    assert any(f"train/dark/{name}: " in found for name in broken)
    assert "leave out such files by --skip-broken" in found
    monkeypatch.setattr("momentumnet.cli.finetune.Comparison.run", lambda *_, **__: {})
    done = command(*options, "--skip-broken")
    assert done.status == 0
    assert f"{photos}/train: 4 of 20 files cannot be read and are skipped" in done.out
    assert "16 training and 8 validation images" in done.out


def test_file_that_is_cut_off_is_one_line_from_a_worker_too(command: Callable[..., Any], photos: Path) -> None:
    path = photos / "train" / "dark" / "0.png"
    path.write_bytes(path.read_bytes()[:-2000])
    found = one_line(command(*OPTIONS, "--weights", "none", "--data", str(photos)), 2)
    assert f"error: {path}: " in found


def test_folders_that_teach_nothing_are_told(photos: Path) -> None:
    said: list[str] = []
    for file in sorted((photos / "train" / "dark").iterdir())[1:]:
        file.unlink()
    transform = Preprocessing(32).transform()
    images = image_folder.load(photos / "train", transform, say=pytest.fail, skip_broken=False)
    image_folder.warn_of_few(images, said.append)
    assert said == [f"warning: {photos}/train holds a single image of dark: accuracy means little there"]
    (photos / "train" / "dark" / "0.png").unlink()
    (photos / "train" / "dark").rmdir()
    images = image_folder.load(photos / "train", transform, say=pytest.fail, skip_broken=False)
    image_folder.warn_of_few(images, said.append)
    assert "holds one class only, bright" in said[-1]


class Hostile:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch /tmp/was-run-by-a-pickle",)


def test_weights_that_are_none_are_one_line_without_bad_advice(command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "hostile.pt").write_bytes(pickle.dumps({"weights": Hostile()}))
    torch.save({"weights": Hostile()}, tmp_path / "hostile-zip.pt")
    (tmp_path / "text.pt").write_text("weights\n")
    for name in ("hostile.pt", "hostile-zip.pt", "text.pt"):
        found = one_line(command(*OPTIONS, "--weights", str(tmp_path / name)), 2)
        assert f"{name} is not a file of weights" in found
        assert "weights_only" not in found


def test_weights_of_another_network_say_which(command: Callable[..., Any], tmp_path: Path) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "w.pt")
    found = one_line(command(*OPTIONS, "--weights", str(tmp_path / "w.pt")), 2)
    assert "does not hold weights of mobilenet_v3_small: it lacks features.0.0.weight, " in found
    assert "They fit --model resnet18" in found
    assert len(found) < 500


def test_absurd_sizes_say_how_many_bytes(command: Callable[..., Any]) -> None:
    found = one_line(command("inspect", "resnet18", "--input", "1,3,3000000,3000000"), 3)
    assert "out of memory: 98.2 TiB were asked for at once" in found


def test_folder_that_cannot_be_written_to_is_told_before_any_work(command: Callable[..., Any]) -> None:
    Path("file").touch()
    assert "file/out cannot be written to: Not a directory" in one_line(command("finetune", "--output", "file/out"), 3)


def test_files_that_the_system_refuses_are_one_line(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        Path("gone").read_text()

    monkeypatch.setattr(inspect, "plan", refused)
    assert one_line(command("inspect", "resnet18"), 3) == "momentumnet: error: gone: No such file or directory"
    shown = command("inspect", "resnet18", "--traceback")
    assert shown.status == 3
    assert "Traceback" in shown.err
    assert shown.err.endswith("momentumnet: error: gone: No such file or directory\n")


def test_reader_that_goes_is_no_error() -> None:
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "momentumnet", "inspect", "resnet18"],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 141
    assert said == ""
