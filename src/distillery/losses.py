"""Every method's mathematics as pure functions of tensors: ``from distillery import losses``.

Each one's own file, in distill/losses/, says what it computes and of which shapes.
"""

from distillery.distill.losses.bake import (
    bake_loss,
    ensemble_targets,
    ensembling_loss,
    global_ensemble_targets,
    knowledge,
    propagate,
)
from distillery.distill.losses.crd import crd_loss, crd_scores, crd_updated
from distillery.distill.losses.cross_entropy import cross_entropy_loss
from distillery.distill.losses.kd import kd_loss
from distillery.distill.losses.mgd import drop_channels, match_channels, matching_cost, reduce_channels
from distillery.distill.losses.overhaul import overhaul_loss
from distillery.distill.losses.partial_l2 import bn_margin, margin_relu, partial_l2, stage_weights
from distillery.distill.losses.rkd import rkd_angle_loss, rkd_distance_loss, rkd_loss

__all__ = [
    "bake_loss",
    "bn_margin",
    "crd_loss",
    "crd_scores",
    "crd_updated",
    "cross_entropy_loss",
    "drop_channels",
    "ensemble_targets",
    "ensembling_loss",
    "global_ensemble_targets",
    "kd_loss",
    "knowledge",
    "margin_relu",
    "match_channels",
    "matching_cost",
    "overhaul_loss",
    "partial_l2",
    "propagate",
    "reduce_channels",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "rkd_loss",
    "stage_weights",
]
