from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torchvision.models import get_model, resnet18

from momentumnet.bench.data import downloads
from momentumnet.command_errors import UsageError
from momentumnet.finetuning import models

SMALL = "mobilenet_v3_small"


def build(
    weights: str | None, *, name: str = SMALL, classes: int = 4, said: list[str] | None = None
) -> tuple[Any, str]:
    say = pytest.fail if said is None else said.append
    return models.build_classifier(name, weights=weights, classes=classes, image_size=32, say=say)


def test_random_weights_have_the_classes() -> None:
    model, source = build("none")
    assert source == "none"
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def test_vision_transformer_takes_the_image_size() -> None:
    model, _ = build("none", name="vit_b_32")
    assert model.image_size == 32


def test_image_size_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="vit_b_16 cannot be built for images of 33 x 33"):
        models.build_classifier("vit_b_16", weights="none", classes=4, image_size=33, say=pytest.fail)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_file_of_the_same_classes(tmp_path: Path, wrapper: str | None) -> None:
    trained = get_model(SMALL, num_classes=4).state_dict()
    torch.save(trained if wrapper is None else {wrapper: trained}, tmp_path / "w.pt")
    model, _ = build(str(tmp_path / "w.pt"))
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())


def test_file_of_other_classes_gets_a_new_head(tmp_path: Path) -> None:
    trained = {f"module.{key}": value for key, value in get_model(SMALL, num_classes=7).state_dict().items()}
    torch.save(trained, tmp_path / "w.pt")
    model, _ = build(str(tmp_path / "w.pt"))
    assert model.classifier[-1].out_features == 4
    assert torch.equal(model.features[0][0].weight, trained["module.features.0.0.weight"])


def test_file_of_another_model_is_refused(tmp_path: Path) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"w\.pt does not hold weights of mobilenet_v3_small"):
        build(str(tmp_path / "w.pt"))


@pytest.mark.parametrize("content", [b"", b"torn", b"not a zip file"])
def test_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UsageError, match=r"w\.pt is not a file of weights: it is damaged"):
        build(str(tmp_path / "w.pt"))


def test_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "w.pt")
    with pytest.raises(UsageError, match="does not hold a state dict"):
        build(str(tmp_path / "w.pt"))


def test_unknown_weights_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="there are none, DEFAULT, IMAGENET1K_V1"):
        build("IMAGENET99K")


def test_without_network_weights_are_random_and_a_line_says_so() -> None:
    said: list[str] = []
    model, source = build(None, said=said)
    assert source == "none"
    assert model.classifier[-1].out_features == 4
    assert said == [
        "weights: those of mobilenet_v3_small could not be downloaded (no network); it starts from random weights"
    ]


@pytest.mark.parametrize(
    "error", [URLError("name not known"), TimeoutError("timed out"), RuntimeError('invalid hash value (expected "0")')]
)
def test_failing_download_is_no_failure(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(downloads, "reachable", lambda url: True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    said: list[str] = []
    assert build(None, said=said)[1] == "none"
    assert len(said) == 1


def test_downloaded_weights_are_used_without_network(tmp_path: Path) -> None:
    url = models.get_model_weights(SMALL)["DEFAULT"].url
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    cached.parent.mkdir(parents=True)
    trained = get_model(SMALL).state_dict()
    torch.save(trained, cached)
    model, source = build("DEFAULT")
    assert source == "DEFAULT"
    assert model.classifier[-1].out_features == 4
    assert torch.equal(model.features[0][0].weight, trained["features.0.0.weight"])


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet50", [(1, 3, 224, 224)]),
        ("efficientnet_v2_s", [(1, 3, 384, 384)]),
        ("r3d_18", [(1, 3, 16, 112, 112)]),
        ("raft_small", [(1, 3, 224, 224)] * 2),
        ("fcn_resnet50", [(1, 3, 224, 224)]),
    ],
)
def test_example_inputs_suit_the_model(name: str, shapes: list[tuple[int, ...]]) -> None:
    assert [tuple(tensor.shape) for tensor in models.example_inputs(name, None)] == shapes


def test_detection_models_take_a_list_of_images() -> None:
    (images,) = models.example_inputs("fasterrcnn_resnet50_fpn", [(2, 3, 64, 64)])
    assert [tuple(image.shape) for image in images] == [(3, 64, 64)] * 2


@pytest.mark.parametrize("name", ["fcn_resnet50", "r3d_18", "raft_small", "ssdlite320_mobilenet_v3_large"])
def test_untrained_models_download_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("downloads"))
    assert sum(1 for _ in models.untrained(name).parameters()) > 0
