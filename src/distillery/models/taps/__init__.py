"""Features of any network, without editing it.

``plan_taps`` finds where a network's stages end, ``Taps`` takes the tensors out of a running network, ``pair_networks``
taps a student and its teacher for what an objective needs, their stages brought together.
"""

from distillery.models.taps.pairing import (
    Party,
    Size,
    TapPair,
    common_size,
    describe_pair,
    match_size,
    pair_networks,
    pair_stages,
)
from distillery.models.taps.plan import Source, TapError, TapPlan, TapPoint, norm_affine
from distillery.models.taps.planning import plan_taps
from distillery.models.taps.recording import Features, Taps

__all__ = [
    "Features",
    "Party",
    "Size",
    "Source",
    "TapError",
    "TapPair",
    "TapPlan",
    "TapPoint",
    "Taps",
    "common_size",
    "describe_pair",
    "match_size",
    "norm_affine",
    "pair_networks",
    "pair_stages",
    "plan_taps",
]
