"""Image-classification knowledge distillation that others can rerun and trust.

For use in Python: ``from distillery import Distiller, create_model, load_experiment, losses, plan_taps, taps``. Each is
imported when it is first asked for, so that ``import distillery`` stays free of torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Module, or module:attribute.
_PUBLIC = {
    "Distiller": "distillery.distill.distiller:Distiller",
    "create_model": "distillery.models:create_model",
    "load_experiment": "distillery.experiment:load_experiment",
    "losses": "distillery.losses",
    "plan_taps": "distillery.models.taps:plan_taps",
    "taps": "distillery.models.taps",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _PUBLIC:
        raise AttributeError(f"module 'distillery' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
