"""Every term of an objective by its name. A new term is one file, one line here, and one class of options.

The names are the fields of config.schema.objective.Objective.
"""

from collections.abc import Mapping
from types import MappingProxyType

# module:class; the class takes the term's options as keyword arguments.
TERMS: Mapping[str, str] = MappingProxyType(
    {
        "ce": "distillery.objectives.cross_entropy:CrossEntropy",
        "kd": "distillery.objectives.kd:KD",
        "mgd": "distillery.objectives.mgd:MGD",
        "bake": "distillery.objectives.bake:BAKE",
        "overhaul": "distillery.objectives.overhaul:Overhaul",
    }
)
