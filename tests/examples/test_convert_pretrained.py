from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from pathlib import Path
from urllib.error import URLError

import convert_pretrained
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cifar import finetune, resnet, table
from torchvision.datasets import CIFAR10

from momentumnet.bench.data import downloads, images
from momentumnet.bench.networks import cifar_networks as networks
from tests.examples.reference import plain_momentum

RESNET20 = "resnet20-12fca82f"


def test_table_shows_the_momentum_rule(noise: images.ImageData, random_net: networks.CifarResNet) -> None:
    test_images = images.normalised(noise.x_test)
    classes = {}
    for gamma in ("1/8", "0.9"):
        for final_velocity in table.FINAL_VELOCITIES:
            with torch.no_grad():
                logits = plain_momentum(random_net, test_images, float(Fraction(gamma)), final_velocity)
            classes[gamma, final_velocity] = logits.argmax(1)
    assert not torch.equal(classes["0.9", "drop"], classes["0.9", "flush"])  # else the test could not tell them apart

    for (gamma, final_velocity), expected in classes.items():
        data = dataclasses.replace(noise, y_test=expected)
        cell = table.measure_cell("random", random_net, data, gamma, final_velocity)
        assert (cell.exact, cell.plain, cell.different) == (100, 100, 0)
        assert cell.reversible_equal


def test_forwards_are_compared_before_other_images_widen_the_range(
    noise: images.ImageData, random_net: networks.CifarResNet
) -> None:
    faint = dataclasses.replace(noise, x_train=noise.x_train // 16 + 112)
    assert table.measure_cell("random", random_net, faint, "1/8", "flush").reversible_equal


def test_real_networks_keep_their_accuracy(real_data: Path) -> None:
    data = images.load_npz(real_data / "cifar10_small.npz")
    net = resnet.load_checkpoint(real_data / f"{RESNET20}.th")
    expected = {("1/8", "drop"): 91.40, ("1/8", "flush"): 92.30, ("1/2", "flush"): 86.00, ("0.9", "drop"): 12.05}

    for (gamma, final_velocity), value in expected.items():
        cell = table.measure_cell(RESNET20, net, data, gamma, final_velocity)
        assert cell.expected == value
        assert cell.exact == pytest.approx(value, abs=0.3)
        assert cell.plain == pytest.approx(value, abs=0.3)
        assert cell.reversible_equal


def test_real_finetuning_gives_the_same_losses(real_data: Path) -> None:
    data = images.load_npz(real_data / "cifar10_small.npz")
    data = dataclasses.replace(data, x_test=data.x_test[:100], y_test=data.y_test[:100])
    net = resnet.load_checkpoint(real_data / f"{RESNET20}.th")

    comparison = finetune.compare_backwards(net, data, steps=4)

    reversible, stored = comparison.runs["reversible"], comparison.runs["stored"]
    assert reversible.losses == pytest.approx(stored.losses, rel=1e-6)
    assert len(set(stored.losses)) == 4  # it does train
    assert reversible.saved_bytes < stored.saved_bytes / 2
    assert comparison.as_expected


def test_offline_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "result.json"

    assert convert_pretrained.main(["--short", "--output", str(output)]) == 0

    result = json.loads(output.read_text())
    cells = {(cell["gamma"], cell["final_velocity"]): cell["exact"] for cell in result["table"]["resnet20-digits"]}
    assert set(cells) == {(gamma, final) for gamma in ("0", "1/8", "0.9") for final in ("drop", "flush")}
    assert cells["0", "drop"] == cells["0", "flush"] > 90
    assert cells["1/8", "flush"] > 90 > cells["0.9", "drop"]
    runs = result["finetune"]["runs"]
    assert runs["reversible"]["losses"] == pytest.approx(runs["stored"]["losses"], rel=1e-6)
    assert runs["reversible"]["saved_bytes"] < runs["stored"]["saved_bytes"]
    printed = capsys.readouterr().out
    assert f"{cells['1/8', 'flush']:.2f}" in printed
    assert "largest difference of the losses" in printed


def test_a_wrong_result_is_told_by_the_exit_code(
    noise: images.ImageData, random_net: networks.CifarResNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_pretrained, "load", lambda options: ({"random": random_net}, noise))
    assert convert_pretrained.main(["table", "--short"]) == 0

    monkeypatch.setattr(table, "EXPECTED_IMAGES", len(noise.x_test))
    monkeypatch.setattr(table, "EXPECTED", {("random", "drop"): (101.0,) * len(table.GAMMAS)})
    assert convert_pretrained.main(["table", "--short"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "images.npz"], "--data needs --weights"),
        (["--weights", "missing.th"], "missing.th"),
        (["--output", "nowhere/result.json"], "there is no folder nowhere"),
    ],
)
def test_unusable_arguments(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        convert_pretrained.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("depth", [20, 26])
def test_checkpoint_tells_depth_and_weights(depth: int, prefix: str, tmp_path: Path) -> None:
    net = networks.CifarResNet(depth, classes=7)
    state = {prefix + name: value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.0} if prefix else state, tmp_path / "net.th")

    loaded = resnet.load_checkpoint(tmp_path / "net.th")

    assert len(loaded.layer3) == (depth - 2) // 6
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in net.state_dict().items())


def test_checkpoint_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "net.th"
    state = networks.CifarResNet(20).state_dict()
    for content, message in [
        ([1, 2], "no checkpoint of a CIFAR ResNet"),
        ({"weight": torch.zeros(2)}, "no checkpoint of a CIFAR ResNet"),
        ({name: value for name, value in state.items() if "layer3.2" not in name}, "'layer3': 2"),
        ({**state, "bn1.weight": torch.zeros(5)}, "does not fit a CIFAR ResNet of 20 layers"),
    ]:
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            resnet.load_checkpoint(path)
    path.write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"no file of tensors"):
        resnet.load_checkpoint(path)


def test_shortcut_of_a_strided_block_has_no_parameters() -> None:
    block = networks.BasicBlock(16, 32, stride=2).eval()
    torch.nn.init.zeros_(block.bn2.weight)  # no branch: what is left is the shortcut
    x = torch.rand(1, 16, 4, 4)

    y = block(x)

    assert torch.equal(y[:, 8:24], x[:, :, [0, 2]][:, :, :, [0, 2]])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_augmentation_shifts_and_mirrors() -> None:
    x = torch.rand(6, 2, 5, 5)
    padded = F.pad(x, (4, 4, 4, 4))
    shifted = [padded[:, :, i : i + 5, j : j + 5] for i in range(9) for j in range(9)]
    candidates = torch.stack(shifted + [image.flip(-1) for image in shifted])

    y = images.shifted_and_mirrored(x, torch.Generator().manual_seed(0))

    found = (candidates == y).flatten(2).all(2).any(0)
    assert found.all()
    assert not torch.equal(y, x)


def test_epochs_repeat_by_seed(noise: images.ImageData) -> None:
    first, again, other = ([x for x, _ in noise.train_batches(15, seed)] for seed in (0, 0, 1))
    assert len(first) == 2  # full batches only
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_images_from_a_file(real_data: Path) -> None:
    data = images.load_npz(real_data / "cifar10_small.npz")
    assert data.x_train.shape == (10000, 3, 32, 32)
    assert data.y_test.bincount().tolist() == [200] * 10


def test_files_that_hold_no_images(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    path.write_text("not an archive")
    with pytest.raises(ValueError, match="no NumPy archive"):
        images.load_npz(path)
    flat = {name: np.zeros(4, np.uint8) for name in images.ARRAYS}
    np.savez(path, **{name: flat[name] for name in images.ARRAYS[:2]})
    with pytest.raises(ValueError, match="lacks x_test, y_test"):
        images.load_npz(path)
    np.savez(path, **flat)
    with pytest.raises(ValueError, match=r"x_train is uint8 \(4,\)"):
        images.load_npz(path)


def test_no_network_for_cifar10(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no route")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "reachable", lambda url: True)
    monkeypatch.setattr(CIFAR10, "download", refuse)
    with pytest.raises(OSError, match=r"could not be downloaded .*no route.*--data"):
        images.load_cifar10()
