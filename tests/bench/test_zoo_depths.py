"""The settings of deeper models, and how the tables tell them apart."""

from __future__ import annotations

from typing import Any

import pytest

from momentumnet.bench.zoo.depths import deepened
from momentumnet.bench.zoo.table import tables
from momentumnet.bench.zoo.timm_depths import deeper


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_hidden_layers": 4, "hidden_size": 32}, {"num_hidden_layers": 7, "hidden_size": 32}),
        ({"encoder_layers": 3, "decoder_layers": 9}, {"encoder_layers": 7, "decoder_layers": 9}),
        ({"depths": [2, 2, 4, 2], "num_heads": [1, 2, 4, 8]}, {"depths": [2, 2, 7, 2], "num_heads": [1, 2, 4, 8]}),
        ({"depth": None}, {"depth": None}),
        ({"layer_types": ["a", "b", "b"]}, {"layer_types": ["a", "b", "b", "a", "b", "b", "a"]}),
        ({"attention_types": [[["a", "b"], 2]]}, {"attention_types": [[["a", "b", "a", "b", "a", "b", "a"], 1]]}),
        ({"full_attn_idxs": [1, 3]}, {"full_attn_idxs": [1, 3, 5]}),
        ({"full_attn_idxs": [1, 7]}, {"full_attn_idxs": [1, 7]}),
    ],
)
def test_settings_of_at_least_seven_layers(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    given = dict(settings)
    assert deepened(settings, 7) == expected
    assert settings == given


def test_families_of_timm() -> None:
    longer = deeper("convnext_atto", 18)
    assert longer is not None
    assert (longer.member, longer.layers, longer.settings) == ("convnext_atto", 18, {"depths": [2, 2, 18, 2]})
    longer = deeper("vit_tiny_patch16_224", 18)
    assert longer is not None
    assert longer.settings == {"depth": 18}
    longer = deeper("poolformer_s12", 12)  # no keyword; another member, which has as many as it has
    assert longer is not None
    assert (longer.member, longer.layers, longer.settings) == ("poolformer_s36", 18, {})
    assert deeper("cait_xxs24_224", 24) is None  # it has them
    assert deeper("poolformer_s12", 6) is None
    assert deeper("efficientnet_b0", 18) is None  # it takes no number


def row(model: str, saved: int, held: int, layers: int | None) -> dict[str, Any]:
    return {
        "library": "timm", "model": model, "streams": [["", 4]], "kinds": ["additive"], "refusal": "", "covered": 4,
        "alone": 0, "blocks": 4, "saved_bytes": saved, "kept_bytes": held, "checkpointed_bytes": held // 2,
        "gradient_error": 0.0, "layers": layers,
    }  # fmt: skip


def test_medians_of_deeper_models_and_of_the_others() -> None:
    rows = [row("a", 100, 10, 18), row("b", 100, 20, 18), row("c", 100, 60, None)]
    (table,) = tables(rows, layers=18)
    assert "at least 18 layers" in table.title
    at = table.columns.index("layers")
    assert [cells[at] for cells in table.rows] == ["18", "18", ""]
    assert all(len(cells) == len(table.columns) for cells in table.rows)
    notes = " ".join(table.notes)
    assert "Median of what goes: 80.0%, with others='checkpoint' 90.0%" in notes
    assert "2 of them made deeper; median of what goes: 85.0%, with others='checkpoint' 92.5%" in notes
    assert "1 of them as they are without; median of what goes: 40.0%, with others='checkpoint' 70.0%" in notes


def test_without_layers_the_table_says_which_depth_it_is() -> None:
    old = row("a", 100, 10, None)
    del old["layers"]  # rows written before there were deeper models
    (table,) = tables([old])
    assert "layers" not in table.columns
    assert "Depth: the smallest member of each family." in table.notes
