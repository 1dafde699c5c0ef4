"""How the models of timm are built and fed: the smallest member of each family, on images as small as it takes.

Vision transformers that come in large sizes only are made narrower and shallower. How many layers a family has, and by
which name it takes another number, stands in `timm_depths`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.bench.zoo.entries import Entry
from momentumnet.bench.zoo.timm_depths import Deeper, deeper

BATCH, CLASSES = 2, 10
_NARROW: dict[str, Any] = {"img_size": 64, "embed_dim": 96, "depth": 6, "num_heads": 3}
# By name: the size of its images, and what else it is made with.
FAMILIES: dict[str, tuple[int, Mapping[str, Any]]] = {
    "beit_base_patch16_224": (64, _NARROW),
    "botnet26t_256": (256, {}),
    "caformer_s18": (64, {}),
    "cait_xxs24_224": (64, {"img_size": 64}),
    "coat_lite_tiny": (64, {"img_size": 64}),
    "coatnet_nano_rw_224": (64, {"img_size": 64}),
    "convit_tiny": (64, {"img_size": 64}),
    "convmixer_768_32": (64, {}),
    "convnext_atto": (64, {}),
    "convnextv2_atto": (64, {}),
    "crossvit_tiny_240": (240, {}),
    "cspdarknet53": (64, {}),
    "cspresnet50": (64, {}),
    "davit_tiny": (64, {}),
    "deit_tiny_distilled_patch16_224": (64, {"img_size": 64}),
    "densenet121": (64, {}),
    "dla34": (64, {}),
    "dpn48b": (64, {}),
    "edgenext_xx_small": (64, {}),
    "efficientformer_l1": (224, {}),
    "efficientformerv2_s0": (224, {}),
    "efficientnet_b0": (64, {}),
    "efficientnetv2_rw_t": (64, {}),
    "efficientvit_b0": (64, {}),
    "efficientvit_m0": (224, {}),
    "efficientvim_m1": (64, {}),
    "ese_vovnet19b_dw": (64, {}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56}),
    "fasternet_t0": (64, {}),
    "fastvit_t8": (64, {}),
    "focalnet_tiny_srf": (64, {}),
    "gcvit_xxtiny": (224, {}),
    "gernet_s": (64, {}),
    "ghostnet_100": (64, {}),
    "gmlp_s16_224": (64, {"img_size": 64}),
    "haloregnetz_b": (224, {}),
    "hardcorenas_a": (64, {}),
    "hgnetv2_b0": (64, {}),
    "hiera_tiny_224": (224, {}),
    "hrnet_w18_small": (64, {}),
    "inception_next_atto": (64, {}),
    "inception_resnet_v2": (96, {}),
    "lambda_resnet26t": (256, {}),
    "legacy_seresnet18": (64, {}),
    "legacy_xception": (96, {}),
    "levit_128s": (224, {}),
    "lowformer_b0": (64, {}),
    "mambaout_femto": (64, {}),
    "maxvit_rmlp_pico_rw_256": (128, {"img_size": 128}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "mobilenetv3_small_050": (64, {}),
    "mobilenetv4_conv_small": (64, {}),
    "mobileone_s0": (64, {}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "mvitv2_tiny": (64, {"img_size": 64}),
    "naflexvit_base_patch16_gap": (64, {"embed_dim": 96, "depth": 6, "num_heads": 3}),
    "nest_tiny": (64, {"img_size": 64}),
    "nextvit_small": (64, {}),
    "nf_regnet_b0": (64, {}),
    "nfnet_l0": (64, {}),
    "pit_ti_224": (64, {"img_size": 64}),
    "poolformer_s12": (64, {}),
    "pvt_v2_b0": (64, {}),
    "rdnet_tiny": (64, {}),
    "regnety_002": (64, {}),
    "repghostnet_050": (64, {}),
    "repvgg_a0": (64, {}),
    "repvit_m0_9": (64, {}),
    "res2net50_26w_4s": (64, {}),
    "resmlp_12_224": (64, {"img_size": 64}),
    "resnest14d": (64, {}),
    "resnet18": (64, {}),
    "resnet50": (64, {}),
    "resnetv2_50": (64, {}),
    "rexnet_100": (64, {}),
    "sam2_hiera_tiny": (128, {}),
    "samvit_base_patch16": (64, _NARROW),
    "selecsls42b": (64, {}),
    "sequencer2d_s": (64, {"img_size": 64}),
    "shvit_s1": (64, {}),
    "skresnet18": (64, {}),
    "starnet_s1": (64, {}),
    "swiftformer_xs": (64, {}),
    "swin_tiny_patch4_window7_224": (64, {"img_size": 64}),
    "swinv2_cr_tiny_224": (64, {"img_size": 64}),
    "swinv2_tiny_window8_256": (64, {"img_size": 64}),
    "tiny_vit_5m_224": (64, {}),
    "tnt_s_legacy_patch16_224": (64, {"img_size": 64}),
    "tresnet_m": (64, {}),
    "twins_svt_small": (224, {}),
    "visformer_tiny": (64, {"img_size": 64}),
    "vit_relpos_small_patch16_224": (64, {"img_size": 64}),
    "vit_tiny_patch16_224": (64, {"img_size": 64}),
    "vit_tiny_r_s16_p8_224": (64, {"img_size": 64}),
    "vitamin_small_224": (64, {"img_size": 64}),
    "volo_d1_224": (64, {"img_size": 64}),
    "xception41": (64, {}),
    "xcit_nano_12_p16_224": (64, {"img_size": 64}),
}


def entries(*, layers: int | None = None) -> Iterator[Entry]:
    """The families that the installed version has, with at least so many ``layers`` in the longest stack or stage."""
    import timm

    known = set(timm.list_models())
    for name in FAMILIES:
        longer = None if layers is None else deeper(name, layers)
        shown = longer.member if longer else name
        if shown in known:
            yield Entry(
                "timm",
                shown,
                partial(build, name, longer),
                partial(images, name),
                partial(images, name),
                layers=partial(_layers, longer),
            )


def _layers(longer: Deeper | None) -> int | None:
    return longer.layers if longer else None


def build(name: str, longer: Deeper | None = None) -> nn.Module:
    """The model with random weights, in training mode, its stochastic depth as it comes."""
    import timm

    torch.manual_seed(0)
    settings = {**FAMILIES[name][1], **(longer.settings if longer else {})}
    model: nn.Module = timm.create_model(longer.member if longer else name, num_classes=CLASSES, **settings)
    return model.train()


def images(name: str) -> Tensor:
    """Two images of the size that the model takes."""
    size = FAMILIES[name][0]
    return torch.rand(BATCH, 3, size, size, generator=torch.Generator().manual_seed(1))
