"""The networks: built by name, given weights, and told how their images are normalised.

Nothing heavy is imported here, so that names can be checked without torch.
"""

from distillery.models.registry import check_input, create_model, is_model, model_names

__all__ = ["check_input", "create_model", "is_model", "model_names"]
