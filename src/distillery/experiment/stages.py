"""The stages that the options of a term name, looked up among those that its networks have."""

from collections.abc import Sequence

from distillery.errors import UserError


def distilled_stages(stages: int, ignore: frozenset[int], term: str) -> list[int]:
    """The stages that have a loss.

    Raises:
        UserError: an ignored stage does not exist, or none is left.
    """
    beyond = sorted(stage for stage in ignore if stage >= stages)
    if beyond:
        raise UserError(f"objective.{term}.ignore: no stage {beyond[0]}; the networks have {stages}, counted from 0")
    left = [stage for stage in range(stages) if stage not in ignore]
    if not left:
        raise UserError(f"objective.{term}.ignore: {sorted(ignore)} leaves no stage to learn from")
    return left


def chosen_stage(stages: int, stage: int, term: str) -> int:
    """A stage that a term names.

    Raises:
        UserError: the networks have no such stage.
    """
    if stage >= stages:
        raise UserError(f"objective.{term}.stage: no stage {stage}; the networks have {stages}, counted from 0")
    return stage


def projected_stages(
    count: int, stages: Sequence[int] | None, eps: float | Sequence[float]
) -> tuple[tuple[int, ...], list[float]]:
    """The stages of a student of so many that have logits for ``ofa``, and each one's exponent, the network's own last.

    Raises:
        UserError: the student has no such stage, or there is another number of exponents.
    """
    chosen = tuple(range(count)) if stages is None else tuple(stages)
    beyond = sorted(stage for stage in chosen if stage >= count)
    if beyond:
        raise UserError(f"objective.ofa.stages: no stage {beyond[0]}; the student has {count}, counted from 0")
    exponents = [eps] * (len(chosen) + 1) if isinstance(eps, float | int) else list(eps)
    if len(exponents) != len(chosen) + 1:
        raise UserError(
            f"objective.ofa.eps: {len(exponents)} values, but {len(chosen)} stages and the logits need "
            f"{len(chosen) + 1}, or one for all"
        )
    return chosen, exponents
