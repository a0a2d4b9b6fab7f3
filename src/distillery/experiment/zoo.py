"""The networks that this project builds itself, by name. Nothing is imported before one of them is built.

The list stands here, and not beside the networks in ``models.zoo``, because a run's digest holds a network's arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Setting = int | str


@dataclass(frozen=True)
class ZooEntry:
    """A network, and what is known about it.

    ``builder`` is ``module:function``; the function takes the number of classes, then ``fixed`` and the run's
    ``model_args`` as keywords. ``numerics`` is raised when the network computes something else for the same weights, or
    draws other first weights.
    """

    builder: str
    fixed: Mapping[str, Setting]
    input_size: int  # side of the images it was designed for, in pixels
    parameters: int  # learned numbers with ten classes
    source: str
    weights_of: str = ""  # the network of timm or torchvision whose published weights fit
    numerics: int = 1


def _entry(builder: str, parameters: int, source: str, input_size: int = 32, **fixed: Setting) -> ZooEntry:
    return ZooEntry(f"distillery.models.zoo.{builder}", MappingProxyType(fixed), input_size, parameters, source)


def _mgd_student(function: str, parameters: int, weights_of: str = "") -> ZooEntry:
    return ZooEntry(
        f"distillery.models.zoo.mgd_students:{function}", MappingProxyType({}), 224, parameters, MGD, weights_of
    )


def _cifar_resnet(depth: int, parameters: int) -> ZooEntry:
    source = "He et al. 2016, Deep Residual Learning for Image Recognition, section 4.2"
    return _entry("cifar_resnet:cifar_resnet", parameters, source, depth=depth)


def _cifar_resnet_x4(depth: int, parameters: int) -> ZooEntry:
    builder = "cifar_resnet:cifar_resnet"
    return _entry(builder, parameters, CRD, depth=depth, width=64, stem_width=32, shortcut="projection")


def _cifar_wrn(depth: int, factor: int, parameters: int) -> ZooEntry:
    source = "Zagoruyko and Komodakis 2016, Wide Residual Networks"
    return _entry("cifar_preact:cifar_wrn", parameters, source, depth=depth, factor=factor)


def _cifar_pyramidnet(depth: int, alpha: int, bottleneck: bool, parameters: int) -> ZooEntry:
    source = "Han et al. 2017, Deep Pyramidal Residual Networks"
    return _entry("cifar_pyramid:CifarPyramidNet", parameters, source, depth=depth, alpha=alpha, bottleneck=bottleneck)


def _cifar_vgg(depth: int, parameters: int) -> ZooEntry:
    return _entry("cifar_vgg:cifar_vgg", parameters, CRD, depth=depth)


def _cifar_imagenet_resnet(depth: int, parameters: int) -> ZooEntry:
    return _entry("cifar_imagenet_resnet:cifar_imagenet_resnet", parameters, KUANGLIU, depth=depth)


def _cifar_preact(depth: int, parameters: int) -> ZooEntry:
    return _entry("cifar_preact:cifar_preact_resnet", parameters, KUANGLIU, depth=depth)


def _cifar_resnext29(cardinality: int, width: int, parameters: int) -> ZooEntry:
    return _entry("cifar_imagenet_resnet:cifar_resnext29", parameters, KUANGLIU, cardinality=cardinality, width=width)


CRD = "Tian et al. 2020, Contrastive Representation Distillation"
KUANGLIU = "pytorch-cifar by Kuang Liu"
MGD = "Yue et al. 2020, Matching Guided Distillation"
BAKE = "Ge et al. 2021, Self-distillation with Batch Knowledge Ensembling"

ZOO: Mapping[str, ZooEntry] = MappingProxyType(
    {
        "cifar_resnet8": _cifar_resnet(8, 75_290),
        "cifar_resnet14": _cifar_resnet(14, 172_506),
        "cifar_resnet20": _cifar_resnet(20, 269_722),
        "cifar_resnet32": _cifar_resnet(32, 464_154),
        "cifar_resnet44": _cifar_resnet(44, 658_586),
        "cifar_resnet56": _cifar_resnet(56, 853_018),
        "cifar_resnet110": _cifar_resnet(110, 1_727_962),
        "cifar_resnet8x4": _cifar_resnet_x4(8, 1_210_410),
        "cifar_resnet32x4": _cifar_resnet_x4(32, 7_410_730),
        "cifar_wrn_16_1": _cifar_wrn(16, 1, 175_066),
        "cifar_wrn_16_2": _cifar_wrn(16, 2, 691_674),
        "cifar_wrn_16_4": _cifar_wrn(16, 4, 2_748_890),
        "cifar_wrn_28_2": _cifar_wrn(28, 2, 1_467_610),
        "cifar_wrn_28_4": _cifar_wrn(28, 4, 5_849_050),
        "cifar_wrn_28_10": _cifar_wrn(28, 10, 36_479_194),
        "cifar_wrn_40_1": _cifar_wrn(40, 1, 563_930),
        "cifar_wrn_40_2": _cifar_wrn(40, 2, 2_243_546),
        "cifar_vgg8": _cifar_vgg(8, 3_918_858),
        "cifar_vgg11": _cifar_vgg(11, 9_231_114),
        "cifar_vgg13": _cifar_vgg(13, 9_416_010),
        "cifar_vgg16": _cifar_vgg(16, 14_728_266),
        "cifar_vgg19": _cifar_vgg(19, 20_040_522),
        "cifar_resnet18": _cifar_imagenet_resnet(18, 11_173_962),
        "cifar_resnet34": _cifar_imagenet_resnet(34, 21_282_122),
        "cifar_resnet50": _cifar_imagenet_resnet(50, 23_520_842),
        "cifar_resnet101": _cifar_imagenet_resnet(101, 42_512_970),
        "cifar_resnet152": _cifar_imagenet_resnet(152, 58_156_618),
        "cifar_preact_resnet18": _cifar_preact(18, 11_171_146),
        "cifar_preact_resnet34": _cifar_preact(34, 21_279_306),
        "cifar_preact_resnet50": _cifar_preact(50, 23_509_066),
        "cifar_preact_resnet101": _cifar_preact(101, 42_501_194),
        "cifar_preact_resnet152": _cifar_preact(152, 58_144_842),
        "cifar_bake_resnet18": _entry("cifar_preact:cifar_bake_resnet18", 11_171_274, BAKE),
        "cifar_resnext29_2x64d": _cifar_resnext29(2, 64, 9_128_778),
        "cifar_resnext29_32x4d": _cifar_resnext29(32, 4, 4_774_218),
        "cifar_resnext29_32x8d": _cifar_resnext29(32, 8, 18_976_074),
        "cifar_pyramidnet110": _cifar_pyramidnet(110, 84, False, 3_904_446),
        "cifar_pyramidnet200": _cifar_pyramidnet(200, 240, True, 26_752_702),
        "cifar_densenet40": _entry(
            "cifar_densenet:cifar_densenet40", 1_019_722, "Huang et al. 2017, Densely Connected Convolutional Networks"
        ),
        "cifar_densenet121": _entry("cifar_densenet:cifar_densenet121", 6_956_298, f"{BAKE}; {KUANGLIU}"),
        "cifar_efficientnet_b0": _entry("cifar_mobile:cifar_efficientnet_b0", 3_598_598, KUANGLIU),
        "cifar_mobilenet_v2": _entry("cifar_mobile:cifar_mobilenet_v2", 2_236_682, KUANGLIU),
        "cifar_shufflenet_v2": _entry("cifar_mobile:cifar_shufflenet_v2", 1_263_854, KUANGLIU),
        "cifar_crd_mobilenet_v2": _entry("cifar_crd_mobile:HalfMobileNetV2", 697_546, CRD),
        "cifar_crd_shufflenet_v1": _entry("cifar_crd_mobile:ShuffleNetV1", 862_768, CRD),
        "cifar_crd_shufflenet_v2": _entry("cifar_crd_mobile:NarrowStemShuffleNetV2", 1_263_278, CRD),
        "mobilenet_v1": _mgd_student("mobilenet_v1", 3_217_226),
        "mgd_mobilenet_v2": _mgd_student("mgd_mobilenet_v2", 2_236_682, "torchvision:mobilenet_v2"),
        "mgd_shufflenet_v2": _mgd_student("mgd_shufflenet_v2", 1_263_854, "torchvision:shufflenet_v2_x1_0"),
        "resnext152_32x4d": _entry("resnext:resnext152_32x4d", 57_922_890, BAKE, 224),
        "ofa_595m": _entry("ofa:ofa_595m", 7_614_298, "Cai et al. 2020, Once-for-All", 224),
        "levit_768": _entry(
            "levit:levit_768", 150_157_948, "Ridnik et al. 2022, Solving ImageNet (its name alone; docs/models.md)", 224
        ),
    }
)
