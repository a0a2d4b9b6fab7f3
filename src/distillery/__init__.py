"""Image-classification knowledge distillation that others can rerun and trust."""

__version__ = "0.1.0"
