"""How many layers the families of timm have in the zoo, and how they are made deeper.

Some fifty take another number of them by keyword. Of others a deeper member of the same width is registered. The rest
stay as they are: their numbers stand in a description of the architecture that no keyword reaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from momentumnet.bench.zoo.depths import lengthened

# By keyword, then by name: the number of layers, or of each stage, as the zoo builds it.
KEYWORDS: dict[str, Mapping[str, int | Sequence[int]]] = {
    "depth": {
        "beit_base_patch16_224": 6,
        "cait_xxs24_224": 24,
        "convit_tiny": 12,
        "deit_tiny_distilled_patch16_224": 12,
        "efficientvit_m0": (1, 2, 3),
        "eva02_tiny_patch14_224": 12,
        "naflexvit_base_patch16_gap": 6,
        "pit_ti_224": (2, 6, 4),
        "repvit_m0_9": (2, 2, 14, 2),
        "samvit_base_patch16": 6,
        "shvit_s1": (2, 4, 5),
        "tnt_s_legacy_patch16_224": 12,
        "visformer_tiny": (7, 4, 4),
        "vit_relpos_small_patch16_224": 12,
        "vit_tiny_patch16_224": 12,
        "vit_tiny_r_s16_p8_224": 12,
        "vitamin_small_224": 14,
        "xcit_nano_12_p16_224": 12,
    },
    "depth_list": {"lowformer_b0": (0, 1, 1, 3, 4)},
    "depths": {
        "convnext_atto": (2, 2, 6, 2),
        "convnextv2_atto": (2, 2, 6, 2),
        "davit_tiny": (1, 1, 3, 1),
        "edgenext_xx_small": (2, 2, 6, 2),
        "efficientformer_l1": (3, 2, 6, 4),
        "efficientvim_m1": (2, 2, 2),
        "efficientvit_b0": (1, 2, 2, 2, 2),
        "fasternet_t0": (1, 2, 8, 2),
        "inception_next_atto": (2, 2, 6, 2),
        "mambaout_femto": (3, 3, 9, 3),
        "nextvit_small": (3, 4, 10, 3),
        "pvt_v2_b0": (2, 2, 2, 2),
        "starnet_s1": (2, 2, 8, 3),
        "swin_tiny_patch4_window7_224": (2, 2, 6, 2),
        "swinv2_cr_tiny_224": (2, 2, 6, 2),
        "swinv2_tiny_window8_256": (2, 2, 6, 2),
        "tiny_vit_5m_224": (2, 2, 6, 2),
        "twins_svt_small": (2, 2, 10, 4),
    },
    "layers": {
        "fastvit_t8": (2, 2, 4, 2),
        "legacy_seresnet18": (2, 2, 2, 2),
        "res2net50_26w_4s": (3, 4, 6, 3),
        "resnet18": (2, 2, 2, 2),
        "resnet50": (3, 4, 6, 3),
        "resnetv2_50": (3, 4, 6, 3),
        "sequencer2d_s": (4, 3, 8, 3),
        "skresnet18": (2, 2, 2, 2),
        "swiftformer_xs": (3, 3, 6, 4),
        "tresnet_m": (3, 4, 11, 3),
    },
    "serial_depths": {"coat_lite_tiny": (2, 2, 2, 2)},
    "stages": {"hiera_tiny_224": (1, 2, 7, 2), "sam2_hiera_tiny": (1, 2, 7, 2)},
}
# By name: how many layers the longest stage has, the deeper member of the same width, and how many it has.
MEMBERS: dict[str, tuple[int, str, int]] = {
    "caformer_s18": (9, "caformer_s36", 18),
    "focalnet_tiny_srf": (6, "focalnet_small_srf", 18),
    "gcvit_xxtiny": (6, "gcvit_tiny", 19),
    "nest_tiny": (8, "nest_small", 20),
    "poolformer_s12": (6, "poolformer_s36", 18),
    "resmlp_12_224": (12, "resmlp_24_224", 24),
}


@dataclass(frozen=True)
class Deeper:
    """A deeper network of a family.

    Attributes:
        member: Its name in timm.
        layers: How many its longest stack or stage has.
        settings: What it is made with beside what the family's member in the zoo is.
    """

    member: str
    layers: int
    settings: Mapping[str, Any] = field(default_factory=dict)


def deeper(name: str, layers: int) -> Deeper | None:
    """The family with at least ``layers`` layers in its longest stack or stage; None where it stays as it is.

    A registered member has as many as it has, be they fewer or more.
    """
    for keyword, depths in KEYWORDS.items():
        depth = depths.get(name, layers)
        longer: int | list[int] = layers if isinstance(depth, int) else lengthened(depth, layers)
        own = depth if isinstance(depth, int) else max(depth)
        if own < layers:
            return Deeper(name, layers, {keyword: longer})
    own, member, count = MEMBERS.get(name, (layers, name, layers))
    return Deeper(member, count) if own < layers else None
