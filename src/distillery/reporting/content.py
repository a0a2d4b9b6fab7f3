"""What a table says, before it is laid out: values, the best of each column, published numbers, verdicts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median

from distillery.errors import UserError
from distillery.experiment import Experiment
from distillery.experiment.reading import nearest
from distillery.experiment.schema.columns import COLUMNS, PROFILE, Summary
from distillery.experiment.schema.experiment import Table
from distillery.reporting.measurements import Measured
from distillery.reporting.published import Published, load_published
from distillery.reporting.statistics import Gain, compare
from distillery.reporting.verdict import Verdict, judge

# So many times the steps of its neighbours are said of a row.
LONGER = 1.25


@dataclass(frozen=True)
class Entry:
    """What a table knows of one run and one metric.

    Of a column that is taken over the baseline, ``gain`` has what the summary leaves out, and ``best`` is a significant
    gain; ``uncompared`` says why a row that was measured has none.
    """

    run: str
    metric: str
    summary: Summary | None
    best: bool = False
    gap: bool = False  # it was not measured, as some of a partial experiment
    published: Published | None = None
    verdict: Verdict | None = None
    gain: Gain | None = None
    uncompared: str = ""


@dataclass(frozen=True)
class Content:
    """A table before it is laid out: its entries by run and metric, and what is known of its runs."""

    name: str
    table: Table
    entries: dict[tuple[str, str], Entry]
    teachers: dict[str, str | None]
    runs: Mapping[str, Measured]
    labels: Mapping[str, str] = field(default_factory=dict)  # of the runs that may use few
    chosen: frozenset[str] = frozenset()  # how these were
    longer: Mapping[str, float] = field(
        default_factory=dict
    )  # of runs whose order shows images more often, how many times the steps
    rehearsal: bool = False

    @property
    def timed(self) -> bool:
        """Whether it holds times, which differ from machine to machine and from day to day."""
        return any(COLUMNS[metric].timed for metric in self.table.columns)

    @property
    def title(self) -> str:
        """Its caption."""
        return " ".join((self.table.title or self.name).split())

    @property
    def scored(self) -> bool:
        """Whether any column depends on the weights, and so on seeds and on the choice of an epoch."""
        return any(COLUMNS[metric].file != PROFILE for metric in self.table.columns)

    @cached_property
    def judged(self) -> list[str]:
        """The metrics with published numbers, in the order of the columns; of an accuracy and its error, the first."""
        found = {entry.metric for entry in self.entries.values() if entry.published is not None}
        judged: list[str] = []
        for metric in self.table.columns:
            if metric in found and COLUMNS[metric].complement not in judged:
                judged.append(metric)
        return judged


# Published numbers by (table, run, metric); a number for every table has the empty name.
Ledger = Mapping[tuple[str, str, str], Published]


def read_ledger(experiment: Experiment, path: Path) -> Ledger:
    """Read the published numbers of an experiment.

    Raises:
        UserError: a row is wrong, or names a run or a table that the experiment does not have.
    """
    ledger = {}
    for number in load_published(path):
        if number.run not in experiment.config.runs:
            known = nearest(number.run, experiment.config.runs)
            raise UserError(f"{path}: row {number.row}, run: {experiment.path} has no run {number.run!r}; {known}")
        if number.table and number.table not in experiment.config.tables:
            known = nearest(number.table, experiment.config.tables)
            raise UserError(
                f"{path}: row {number.row}, table: {experiment.path} has no table {number.table!r}; {known}"
            )
        ledger[number.table, number.run, number.metric] = number
    return ledger


def gather(experiment: Experiment, name: str, table: Table, runs: Mapping[str, Measured], ledger: Ledger) -> Content:
    """Collect what a table says: values, the best of each metric, published numbers and verdicts.

    A row that teaches another row of the table does not compete for the best value. Values that print alike are equally
    good, and a value without competitor is not called best. Nor is a row that teaches another compared with the
    baseline; a gain is bold where it is significant, whichever is the largest.
    """
    teachers = {run: " + ".join(experiment.teachers_of(run)) or None for run in table.runs()}
    teaching = {teacher for run in table.runs() for teacher in experiment.teachers_of(run)}
    competing = {run: None for run in table.runs() if run not in teaching}
    entries: dict[tuple[str, str], Entry] = {}
    for metric in table.paired:
        entries |= _compare(table, metric, competing, runs)
    for metric in dict.fromkeys(table.columns):
        if metric in table.paired:
            continue
        column = COLUMNS[metric]
        numbers = {run: _published(ledger, name, run, metric) for run in table.runs()}
        summaries = {
            run: column.value(runs.get(run, Measured()), runs.get(teachers[run] or ""), numbers[run])
            for run in table.runs()
        }
        best = _best(metric, [summaries[run] for run in competing])
        for run, summary in summaries.items():
            number, measured = numbers[run], runs.get(run, Measured())
            verdict = None if number is None else _judge(measured, summary, number)
            is_best = run in competing and summary is not None and column.show(summary.mean) == best
            without = (column.needs_teacher and teachers[run] is None) or (column.beside and number is None)
            gap = summary is None and not without and not measured.holds(metric)
            entries[run, metric] = Entry(run, metric, summary, is_best, gap, number, verdict)
    few = {run: labels for run in table.runs() if (labels := experiment.labels(run)) is not None}
    chosen = frozenset("named by a list" if labels.listed else "drawn by its seed" for labels in few.values())
    shown = {run: labels.shown for run, labels in few.items()}
    return Content(
        name, table, entries, teachers, runs, shown, chosen, _longer(experiment, table), experiment.rehearsal
    )


def _longer(experiment: Experiment, table: Table) -> dict[str, float]:
    """The rows that take more steps than the others because an epoch of theirs shows images several times.

    By run, how many times the steps that the other trained rows take (their median).
    """
    trained = [run for run in dict.fromkeys(table.runs()) if run in experiment.recipes]
    terms = {run: experiment.config.runs[run].objective.terms().values() for run in trained}
    passes = {run: max(options.passes() for options in found) for run, found in terms.items()}
    steps = {run: passes[run] * experiment.recipes[run].epochs / experiment.recipes[run].batch for run in trained}
    others = [steps[run] for run in trained if passes[run] == 1]
    if not others:
        return {}
    ratios = {run: steps[run] / median(others) for run in trained if passes[run] > 1}
    return {run: ratio for run, ratio in ratios.items() if ratio >= LONGER}


def _compare(
    table: Table, metric: str, competing: Iterable[str], runs: Mapping[str, Measured]
) -> dict[tuple[str, str], Entry]:
    """Compare the competing rows with the baseline."""
    assert table.baseline is not None
    key = COLUMNS[metric].key
    values = {run: runs.get(run, Measured()).by_seed(key) for run in [*table.runs(), table.baseline]}
    rows = {run: values[run] for run in competing if run != table.baseline}
    gains = compare(values[table.baseline], rows)
    entries = {}
    for run in table.runs():
        gain = gains.get(run)
        uncompared = ""
        if run == table.baseline:
            uncompared = "baseline"
        elif run in rows and values[run] and gain is None:
            uncompared = "no common seed" if values[table.baseline] else "baseline not run"
        summary = None if gain is None else Summary(gain.mean, gain.std, gain.n)
        best = gain is not None and gain.shown and gain.mean > 0
        gap = run in rows and not values[run]
        entries[run, metric] = Entry(run, metric, summary, best, gap, gain=gain, uncompared=uncompared)
    return entries


def _judge(measured: Measured, summary: Summary | None, number: Published) -> Verdict:
    """Compare a value with the published one; of a gain, the top-1 behind each, for they differ by as much."""
    if number.beside is not None:
        number = number.beside
        summary = COLUMNS[number.metric].value(measured)
    return judge(COLUMNS[number.metric], summary, measured.selection, measured.images, number)


def _best(metric: str, summaries: Iterable[Summary | None]) -> str | None:
    column = COLUMNS[metric]
    means = [summary.mean for summary in summaries if summary is not None]
    if column.better is None or len(means) < 2:
        return None
    return column.show(max(means) if column.better == "higher" else min(means))


def _published(ledger: Ledger, table: str, run: str, metric: str) -> Published | None:
    """The published number for a column: the table's own or one for all, as an accuracy or as an error."""
    metrics = [name for name in (metric, COLUMNS[metric].complement) if name is not None]
    found = [ledger[where, run, name] for where in (table, "") for name in metrics if (where, run, name) in ledger]
    return found[0].in_column(metric) if found else None
