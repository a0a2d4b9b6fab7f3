"""Features of any network, without editing it.

``plan_taps`` finds where a network's stages end, ``Taps`` takes the tensors out of a running network, ``pair_stages``
brings the stages of a teacher and a student together.
"""

from distillery.models.taps.pairing import common_size, describe_pair, match_size, pair_stages
from distillery.models.taps.plan import Source, TapError, TapPlan, TapPoint, norm_affine
from distillery.models.taps.planning import plan_taps
from distillery.models.taps.recording import Features, Taps

__all__ = [
    "Features",
    "Source",
    "TapError",
    "TapPlan",
    "TapPoint",
    "Taps",
    "common_size",
    "describe_pair",
    "match_size",
    "norm_affine",
    "pair_stages",
    "plan_taps",
]
