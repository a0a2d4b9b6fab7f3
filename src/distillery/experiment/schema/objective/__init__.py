"""Every term that an objective may name: its options, what it needs to see, its hooks, and where its mathematics lies.

A new term is a file in distill/losses/, here a class of options among those of its kind (``logits``, ``maps``,
``relations``, ``heads``), and its line in ``registry``. No torch is imported.
"""

from distillery.experiment.schema.objective.heads import *  # noqa: F403
from distillery.experiment.schema.objective.logits import *  # noqa: F403
from distillery.experiment.schema.objective.maps import *  # noqa: F403
from distillery.experiment.schema.objective.registry import *  # noqa: F403
from distillery.experiment.schema.objective.relations import *  # noqa: F403
from distillery.experiment.schema.objective.term import *  # noqa: F403
from distillery.experiment.schema.objective.weighted_sum import *  # noqa: F403
