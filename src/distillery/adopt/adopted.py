"""What comes of somebody's settings, and how their keys are taken one by one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from distillery.errors import UserError

Kind = TypeVar("Kind")


@dataclass
class Adopted:
    """A recipe and runs as YAML has them; and of the keys, which were carried over, which not and why."""

    recipe: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    carried: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    without_effect: list[str] = field(default_factory=list)


class Settings:
    """Somebody's keys, of which each is taken once; what is left in the end is unknown.

    ``where`` is the file, ``prefix`` where in it the mapping stands.
    """

    def __init__(self, given: Mapping[str, Any], where: Path, adopted: Adopted, prefix: str = "") -> None:
        self.given, self.where, self.adopted, self.prefix = dict(given), where, adopted, prefix

    def take(self, key: str, kind: type[Kind], default: Kind) -> Kind:
        """The value of a key that is carried over; where it is absent or null, the default.

        Raises:
            UserError: it is of another kind.
        """
        value = self.given.pop(key, None)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            words = {float: "a number", int: "a whole number", str: "text", bool: "true or false", list: "a list"}
            raise UserError(
                f"{self.where}: {self.prefix}{key}: {value!r} is not valid; expected {words.get(kind, kind)}"
            )
        self.adopted.carried.append(f"{self.prefix}{key}")
        return value

    def block(self, key: str) -> "Settings":
        """A mapping under a key; empty where it is absent or null.

        Raises:
            UserError: it is something else.
        """
        value = self.given.pop(key, None)
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{self.where}: {self.prefix}{key}: {value!r} is not valid; expected a mapping of keys")
        return Settings(value or {}, self.where, self.adopted, f"{self.prefix}{key}.")

    def lose(self, key: str, value: Any, why: str) -> None:  # noqa: ANN401
        """A key that was taken, but whose value cannot be carried over."""
        self._uncarried(key)
        self.adopted.left.append(f"{self.prefix}{key}: {shown(value)}: {why}")

    def idle(self, *keys: str) -> None:
        """Keys that were taken, and have no effect beside the others."""
        self.adopted.without_effect += [f"{self.prefix}{key}" for key in keys if self._uncarried(key)]

    def _uncarried(self, key: str) -> bool:
        carried, name = self.adopted.carried, f"{self.prefix}{key}"
        if name not in carried:
            return False
        carried.remove(name)
        return True

    def leave(self, key: str, why: str, neutral: tuple[Any, ...] = ()) -> None:
        """A key that cannot be carried over; nothing is lost where it has one of the neutral values, or none."""
        if key not in self.given:
            return
        value = self.given.pop(key)
        if value in (None, False, "", [], {}) or value in neutral:
            self.adopted.without_effect.append(f"{self.prefix}{key}")
        else:
            self.adopted.left.append(f"{self.prefix}{key}: {shown(value)}: {why}")

    def skip(self, *keys: str) -> None:
        """Keys that decide nothing here."""
        self.adopted.without_effect += [f"{self.prefix}{key}" for key in keys if key in self.given]
        for key in keys:
            self.given.pop(key, None)

    def end(self) -> None:
        """Name every key that nobody took."""
        for key, value in self.given.items():
            self.adopted.left.append(f"{self.prefix}{key}: {shown(value)}: unknown key {key!r}")
        self.given = {}


def steps(settings: Settings, epochs: int, when: dict[str, Any], ratio: float) -> dict[str, Any]:
    """A step schedule of the drops that come within a run; where none does, the rate is constant."""
    schedule = {"name": "step", **when, "ratio": ratio}
    if "drops" in when:
        schedule["drops"] = [drop for drop in when["drops"] if not isinstance(drop, int) or drop < epochs]
    if schedule.get("every", 0) < epochs and schedule.get("drops", ["no list"]):
        return schedule
    settings.adopted.assumed.append(f"schedule: constant, for no drop comes within {epochs} epochs")
    return {"name": "constant"}


def shown(value: Any) -> str:  # noqa: ANN401
    """A value in a line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
