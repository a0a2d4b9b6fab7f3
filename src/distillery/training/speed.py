"""What a machine may choose to be fast. It changes how long a run takes, and its last bits; never what a run is.

None of it is in a digest; run.json has, for each session, what was taken.
"""

import os
from dataclasses import dataclass, fields
from typing import Literal, get_args

from distillery.errors import UserError
from distillery.experiment.reading import nearest

VARIABLE = "DISTILLERY_SPEED"
Switch = Literal["auto", "on", "off"]
Compiled = Literal["off", "teacher", "student", "both"]


@dataclass(frozen=True)
class Speed:
    """The choices. ``auto`` leaves every bit of a run on a CPU as it is; ``training.devices.settle`` decides it.

    Attributes:
        precision: the recipe's; ``native`` takes float32 where the device does not itself compute in half precision,
            and so does ``auto`` on GPUs.
        channels_last: the memory format; ``auto`` is the recipe's.
        fused: one kernel for all of an optimizer's step, where it has one; ``auto`` is ``off``.
        tf32: on a GPU, round what float32 products take to 10 bits: of ``convolutions`` (``auto``, and torch's
            default), of matrices too (``on``), or of none.
        teacher: a live one's network, ``plain`` by default: ``half`` keeps its weights in the step's half precision, to
            the bit what is rounded anew in each step otherwise; ``folded`` multiplies its batch norms into its
            convolutions, too, which rounds otherwise.
        compile: which networks torch.compile compiles, of those that only logits are asked of.
    """

    precision: Literal["auto", "recipe", "native", "32-true"] = "auto"
    channels_last: Switch = "auto"
    fused: Switch = "auto"
    tf32: Literal["auto", "on", "convolutions", "off"] = "auto"
    teacher: Literal["auto", "plain", "half", "folded"] = "auto"
    compile: Compiled = "off"


def chosen_speed(given: str) -> Speed:
    """The choices that an option names, as ``fused=off,compile=teacher``; by default those of the environment.

    Raises:
        UserError: one is not known, given twice, or has no such value.
    """
    where, text = ("--speed", given) if given else (VARIABLE, os.environ.get(VARIABLE, ""))
    valid = {each.name: get_args(each.type) for each in fields(Speed)}
    chosen: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in valid:
            raise UserError(f"{where}: no choice {name!r}; {nearest(name, [*valid])}")
        if not equals or value not in valid[name]:
            raise UserError(f"{where}: {part!r} is not valid; {name}= takes {', '.join(valid[name])}")
        if name in chosen:
            raise UserError(f"{where}: {name} is given twice, as {chosen[name]} and as {value}")
        chosen[name] = value
    return Speed(**chosen)  # type: ignore[arg-type]
