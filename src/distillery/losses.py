"""Every method's mathematics as pure functions of tensors: ``from distillery import losses``.

These are the public functions of the files in distill/losses/, where each says what it computes and of which shapes:
``kd_loss``, ``matching_cost``, ``bake_loss`` and so on; a new method's are here as soon as its file is there.
"""

from importlib import import_module
from inspect import isfunction
from pkgutil import iter_modules
from typing import Any

from distillery.distill import losses as _files


def _public_functions() -> dict[str, Any]:
    modules = [import_module(f"{_files.__name__}.{file.name}") for file in iter_modules(_files.__path__)]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


globals().update(_public_functions())
__all__ = sorted(_public_functions())


def __getattr__(name: str) -> Any:  # noqa: ANN401  # tells type checkers that there is more than they see
    raise AttributeError(f"module 'distillery.losses' has no function {name!r}; it has {', '.join(__all__)}")
