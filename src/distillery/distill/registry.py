"""Every term of an objective by its name. A new term is one file, one line here, and one class of options.

The names are the fields of config.schema.objective.Objective.
"""

from collections.abc import Mapping
from types import MappingProxyType

# module:class; the class takes the term's options as keyword arguments.
TERMS: Mapping[str, str] = MappingProxyType(
    {
        "ce": "distillery.distill.losses.cross_entropy:CrossEntropy",
        "kd": "distillery.distill.losses.kd:KD",
        "mgd": "distillery.distill.losses.mgd:MGD",
        "bake": "distillery.distill.losses.bake:BAKE",
        "overhaul": "distillery.distill.losses.overhaul:Overhaul",
    }
)
