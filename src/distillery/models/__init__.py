"""The networks: built by name, given weights, with the normalisation of their images.

Nothing heavy is imported here, so that names can be checked without torch.
"""

from distillery.models.registry import (
    check_input,
    check_training,
    create_model,
    has_classifier,
    is_model,
    model_names,
    weights_without_gradient,
)

__all__ = [
    "check_input",
    "check_training",
    "create_model",
    "has_classifier",
    "is_model",
    "model_names",
    "weights_without_gradient",
]
