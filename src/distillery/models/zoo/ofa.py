"""OFA-595m: the network "flops@595M" of Cai et al. 2020, "Once-for-All", on timm's MobileNetV3."""

from functools import partial

from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

# One line a stage, as timm writes them: kernel k, stride s, expansion e, channels c, squeeze-and-excitation se, ReLU re
# in place of hard swish.
LAYERS = [
    ["ds_r1_k3_s1_e1_c24_nre"],
    ["ir_r1_k3_s2_e3_c32_nre", "ir_r1_k5_s1_e4_c32_nre", "ir_r1_k3_s1_e3_c32_nre"],
    [
        "ir_r1_k5_s2_e4_c48_se0.25_nre",
        "ir_r1_k5_s1_e4_c48_se0.25_nre",
        "ir_r1_k3_s1_e6_c48_se0.25_nre",
        "ir_r1_k5_s1_e3_c48_se0.25_nre",
    ],
    ["ir_r1_k7_s2_e6_c96", "ir_r1_k5_s1_e6_c96", "ir_r1_k3_s1_e3_c96", "ir_r1_k5_s1_e4_c96"],
    [
        "ir_r1_k3_s1_e6_c136_se0.25",
        "ir_r1_k5_s1_e6_c136_se0.25",
        "ir_r1_k7_s1_e6_c136_se0.25",
        "ir_r1_k3_s1_e4_c136_se0.25",
    ],
    [
        "ir_r1_k3_s2_e6_c192_se0.25",
        "ir_r1_k3_s1_e6_c192_se0.25",
        "ir_r1_k5_s1_e6_c192_se0.25",
        "ir_r1_k3_s1_e3_c192_se0.25",
    ],
    ["cn_r1_k1_s1_c1152"],
]


def ofa_595m(num_classes: int, drop_rate: float = 0.0) -> MobileNetV3:
    """Build the network; first weights are timm's for MobileNetV3."""
    return MobileNetV3(
        decode_arch_def(LAYERS),  # type: ignore[no-untyped-call]
        num_classes,
        stem_size=24,
        num_features=1536,
        head_bias=False,
        act_layer=nn.Hardswish,
        norm_layer=nn.BatchNorm2d,
        se_layer=partial(SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=round_channels),
        drop_rate=drop_rate,
    )
