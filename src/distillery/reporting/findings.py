"""What a table of gains says of kinds of terms: how many beat its baseline, lose to it, or neither."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from distillery.experiment import Experiment
from distillery.reporting.content import Content
from distillery.reporting.statistics import Gain

Kind = Literal["feature terms", "logit terms", "terms without a teacher"]
KINDS: tuple[Kind, ...] = ("feature terms", "logit terms", "terms without a teacher")


def kind_of(experiment: Experiment, run: str) -> Kind | None:
    """What the terms of a trained run look at, besides the student's own logits; None of an imported network.

    A feature term looks at more than logits, of the student or of its teacher.
    """
    if run not in experiment.recipes:
        return None
    if experiment.teacher(run) is None:
        return "terms without a teacher"
    needs = experiment.config.runs[run].objective.needs()
    return "feature terms" if (needs.student | needs.teacher) - {"logits"} else "logit terms"


@dataclass(frozen=True)
class Tally:
    """The rows of one kind, by what their gains over the baseline say.

    With several seeds: ``better`` and ``worse`` are significant after Holm's correction for the table's rows,
    ``unclear`` are the others, of which ``above`` and ``below`` have a 95 % interval that leaves out 0. ``higher`` and
    ``lower`` are all rows by the mean alone, also of one seed, which proves nothing.
    """

    better: tuple[str, ...]
    worse: tuple[str, ...]
    unclear: tuple[str, ...]
    above: tuple[str, ...]
    below: tuple[str, ...]
    higher: tuple[str, ...]
    lower: tuple[str, ...]

    @property
    def tested(self) -> int:
        """How many rows have several seeds."""
        return len(self.better) + len(self.worse) + len(self.unclear)


def tally(experiment: Experiment, content: Content, without: Iterable[str] = ()) -> dict[Kind, Tally]:
    """Count the rows of a table of gains by the kind of their terms, but for those ``without``, which are no terms."""
    (metric,) = content.table.paired
    gains = {
        run: gain
        for run in dict.fromkeys(content.table.runs())
        if (gain := content.entries[run, metric].gain) is not None and run not in set(without)
    }
    return {
        kind: _tally({run: gain for run, gain in gains.items() if kind_of(experiment, run) == kind}) for kind in KINDS
    }


def _tally(gains: Mapping[str, Gain]) -> Tally:
    several = {run: gain for run, gain in gains.items() if gain.n > 1}
    unclear = {run: gain for run, gain in several.items() if not gain.shown}
    return Tally(
        better=tuple(run for run, gain in several.items() if gain.shown and gain.mean > 0),
        worse=tuple(run for run, gain in several.items() if gain.shown and gain.mean < 0),
        unclear=tuple(unclear),
        above=tuple(run for run, gain in unclear.items() if gain.low is not None and gain.low > 0),
        below=tuple(run for run, gain in unclear.items() if gain.high is not None and gain.high < 0),
        higher=tuple(run for run, gain in gains.items() if gain.mean > 0),
        lower=tuple(run for run, gain in gains.items() if gain.mean <= 0),
    )


def describe_tally(tallies: Mapping[Kind, Tally], baseline: str) -> Iterator[str]:
    """A Markdown item for each kind that the table has rows of."""
    for kind, found in tallies.items():
        sentences = []
        if found.tested:
            sentences.append(
                f"Of {found.tested} with several seeds, **{len(found.better)} beat{'s' * (len(found.better) == 1)} "
                f"`{baseline}` significantly**{_named(found.better)}, {len(found.worse)} "
                f"{'is' if len(found.worse) == 1 else 'are'} significantly worse{_named(found.worse)}, and of "
                f"{len(found.unclear)} nobody can tell{_named(found.unclear)}."
            )
        if found.unclear:
            sentences.append(
                f"Of these, the 95 % interval alone, uncorrected, leaves out 0 above for {len(found.above)}"
                f"{_named(found.above)} and below for {len(found.below)}{_named(found.below)}."
            )
        if found.higher or found.lower:
            every = len(found.higher) + len(found.lower)
            sentences.append(
                f"By the mean alone, also of one seed, {len(found.higher)} of {every} scored higher"
                f"{_named(found.higher)}; that proves nothing."
            )
        if sentences:
            yield f"- **{kind[0].upper()}{kind[1:]}.** {' '.join(sentences)}"


def _named(runs: Iterable[str]) -> str:
    names = ", ".join(f"`{run}`" for run in runs)
    return f" ({names})" if names else ""
