"""What building a network tells of it, kept for the next time: a check of a thousand runs need not import torch again.

The facts lie in the user's cache folder; they may be removed at any time, and are left out where it cannot be written.
Those of the networks that Distillery's own pages name are shipped.
"""

from __future__ import annotations

import atexit
import json
from collections import ChainMap
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import cache, lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distillery.atomic import write_json
from distillery.errors import UserError
from distillery.experiment.plugins import is_plugin, source_of
from distillery.paths import cache_folder

if TYPE_CHECKING:
    from torch import nn

    from distillery.models.taps import TapPlan

FLOAT = 4
# What checks of Distillery's pages find; tests/models/test_shipped_facts.py writes it, and holds it true.
SHIPPED = Path(__file__).with_name("networks.json")
# What decides whether a network can be built, how large it is, which images it takes and what it gives, and which
# optimizers there are, beside the libraries.
OWN = ("composite.py", "facts.py", "initialisation.py", "registry.py", "taps/*.py", "zoo/*.py")
SOURCES = (*OWN, "../experiment/zoo.py", "../training/optim.py")
Arguments = tuple[tuple[str, bool | int | float | str], ...]


class Network(NamedTuple):
    """A network as a page names it; ``arguments`` are the sorted items of its ``model_args``."""

    name: str
    classes: int
    arguments: Arguments = ()

    @classmethod
    def named(cls, name: str, classes: int, model_args: Mapping[str, bool | int | float | str]) -> Network:
        """The network of a page's keys."""
        return cls(name, classes, tuple(sorted(model_args.items())))

    def built(self) -> nn.Module:
        """Build it."""
        from distillery.models.registry import create_model

        return create_model(self.name, self.classes, **dict(self.arguments))


def network_bytes(network: Network, size: int | None = None, images: int | None = None) -> int:
    """The bytes of a network's weights in float32.

    With a ``size``, it takes one blank image of so many pixels a side, too; with ``images``, it can also be trained on
    a batch of so many.

    Raises:
        UserError: there is no such network, or it takes no such arguments or images; the line begins with the key, or
            names the model.
    """
    return _fact("bytes", network, size, images)


def embedding_width(network: Network, size: int | None) -> int:
    """D of a network's embedding, for images of so many pixels a side; of its own size where None."""
    return _fact("embedding", network, size)


def stage_count(network: Network, size: int) -> int:
    """How many stages of a network end in a map, for images of so many pixels a side."""
    return _fact("stages", network, size)


def own_stage_count(network: Network, size: int) -> int:
    """How many stages a network has, those that need no partner among them."""
    return _fact("own stages", network, size)


def paired_stage_count(teacher: Network, student: Network, size: int) -> int:
    """How many stages two networks have in common."""
    return _fact("pairs", teacher, student, size)


def _fact(kind: str, *given: Network | int | None) -> int:
    return known([kind, *given, *_sources(*given)], lambda: FOUND_BY[kind](*given))


def _sources(*given: Network | int | None) -> list[str]:
    """What the networks among them are beside their names: the code of plugins."""
    return [source_of(each.name) for each in given if isinstance(each, Network) and is_plugin(each.name)]


def known(key: list[Any], find: Callable[[], int]) -> int:
    """What stands under a key, which holds all that it depends on but Distillery's code and the libraries."""
    text, facts = json.dumps(key), _facts()
    if text not in facts:
        facts[text] = find()
    return facts[text]


def _bytes(network: Network, size: int | None, images: int | None) -> int:
    import torch

    from distillery.models.registry import check_input, check_training

    if size is not None:
        built = network.built()
        check_input(built, network.name, size, network.classes)
        if images is not None:
            check_training(built, network.name, size, images)
    else:
        try:
            with torch.device("meta"), _undrawn():  # shapes alone
                built = network.built()
        # Some networks compute with numbers while they are built, and cannot be built without any.
        except (UserError, RuntimeError):
            built = network.built()
    count: int = sum(value.numel() for value in built.state_dict().values())
    return FLOAT * count


def _embedding(network: Network, size: int | None) -> int:
    return _plan(network, size).features


def _stages(network: Network, size: int) -> int:
    return len(_plan(network, size).points)


def _own_stages(network: Network, size: int) -> int:
    return len(_plan(network, size).unpaired)


def _pairs(teacher: Network, student: Network, size: int) -> int:
    from distillery.models.taps import pair_stages

    return len(pair_stages(_plan(teacher, size), _plan(student, size)))


FOUND_BY: dict[str, Any] = {
    "bytes": _bytes,
    "embedding": _embedding,
    "stages": _stages,
    "own stages": _own_stages,
    "pairs": _pairs,
}


def _plan(network: Network, size: int | None) -> TapPlan:
    return _planned(json.dumps([network, size, *_sources(network)]), network, size)


@lru_cache
def _planned(key: str, network: Network, size: int | None) -> TapPlan:
    """The key tells apart what Python takes for equal, as 1 and True, and what is called alike in two projects."""
    from distillery.models.taps import plan_taps

    built = network.built()
    if size is None:  # that of a library's tag
        size = int((getattr(built, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[-1])
    return plan_taps(built, size, network.name)


def _undrawn() -> AbstractContextManager[object]:
    """Draw no weights: where they have shapes alone, torch would import its compiler for that, which takes a second."""
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:  # noqa: ANN401
            initial = getattr(function, "__module__", None) == "torch.nn.init"
            if initial or getattr(function, "__name__", "") in ("normal_", "uniform_"):
                return next(iter((*given, *(named or {}).values())))
            return function(*given, **(named or {}))

    return Undrawn()


@cache
def _facts() -> ChainMap[str, int]:
    """All that is known, read once; what is added is written when the process ends."""
    path, code = cache_folder() / "networks.json", _code()
    kept = _read_facts(path, code)
    before = len(kept)

    def keep() -> None:
        if len(kept) > before:
            with suppress(UserError):
                write_json(path, {"code": code, "facts": kept})

    atexit.register(keep)
    return ChainMap(kept, _read_facts(SHIPPED, code))


def _read_facts(path: Path, code: str) -> dict[str, int]:
    """The facts of a file, none if they are of other code."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["code"] == code:
            return dict(content["facts"])
    return {}


def _code() -> str:
    """What stands for all code that builds networks, plugins aside: with another, nothing is known any more."""
    files = [path for pattern in SOURCES for path in sorted(Path(__file__).parent.glob(pattern))]
    return f"{sha256(b''.join(path.read_bytes() for path in files)).hexdigest()} {_libraries()}"


def _libraries() -> str:
    """The versions of those that build networks; a build for GPUs builds the same."""
    found = []
    for package in ("torch", "timm", "torchvision"):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package).partition('+')[0]}")
    return ", ".join(found)
