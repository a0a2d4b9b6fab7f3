"""What each cell of a table says."""

from collections.abc import Iterable

from distillery.experiment.schema.columns import COLUMNS, METRICS, Column
from distillery.experiment.schema.experiment import Grid, head_cells
from distillery.reporting.content import Content, Entry
from distillery.reporting.legend import NOT_RUN, SELECTIONS
from distillery.reporting.markup import Cell, Sheet
from distillery.reporting.measurements import Measured, Profile
from distillery.reporting.origins import describe_origins
from distillery.reporting.statistics import MOST_SEEDS, Gain

NOTHING = "–"


def lay_out(content: Content) -> Sheet:
    """One row a run, one column a metric; beside them what says how far the numbers can be trusted and compared.

    A grid has its own two settings instead, and the metrics of a run together in its cell.
    """
    if content.table.grid is not None:
        return _lay_out_grid(content, content.table.grid)
    has_teacher = any(content.teachers.values())
    heads = list(head_cells(content.table.heading)) if content.table.heading else []
    headings = (
        heads
        + ["Run"]
        + ["Teacher"] * has_teacher
        + ["Labels"] * bool(content.labels)
        + [COLUMNS[metric].heading for metric in content.table.columns]
    )
    keys = ["label"] * len(heads) + ["run"] + ["teacher"] * has_teacher + ["labels"] * bool(content.labels)
    keys += content.table.columns
    words = len(heads) + 1 + has_teacher + bool(content.labels)
    numeric = [False] * words + [True] * len(content.table.columns)
    if content.scored:
        headings += ["n", "Selection"]
        keys += ["n", "selection"]
        numeric += [True, False]
    for metric in content.judged:
        headings += [f"Published {COLUMNS[metric].heading}", "Difference", "Verdict"]
        keys += ["published", "difference", "verdict"]
        numeric += [True, True, False]
    labels = {run: list(head_cells(label)) if heads else [] for run, label in content.table.rows.items()}
    rows = [(*map(Cell, labels[run]), *_row(content, run, has_teacher)) for run in content.table.rows]
    return Sheet(
        content.name, content.title, tuple(headings), tuple(numeric), tuple(rows), _notes(content), tuple(keys)
    )


def _lay_out_grid(content: Content, grid: Grid) -> Sheet:
    metrics = " / ".join(COLUMNS[metric].heading for metric in content.table.columns)
    rows = [
        (*map(Cell, head_cells(heading)), *(Cell(NOTHING) if run is None else _grid_cell(content, run) for run in runs))
        for heading, runs in grid.down.items()
    ]
    corner = head_cells(grid.corner or metrics)
    numeric = (*(False for _ in corner), *(True for _ in grid.across))
    headings = (*corner, *grid.across)
    title = f"{content.title} ({metrics})"
    return Sheet(content.name, title, headings, numeric, tuple(rows), _notes(content))


def _grid_cell(content: Content, run: str) -> Cell:
    """The metrics of a run, with the published number and verdict of each that has them."""
    entries = [content.entries[run, metric] for metric in content.table.columns]
    texts = []
    for entry in entries:
        text = _value_cell(content, entry).text
        if entry.published is not None:
            published, _, finding = _verdict_cells(entry)
            text += f" ({published.text})" if finding.text == text else f" ({published.text}: {finding.text})"
        texts.append(text)
    findings = dict.fromkeys(entry.verdict.finding for entry in entries if entry.verdict is not None)
    value = None if entries[0].summary is None else entries[0].summary.mean
    hint = "\n".join(dict.fromkeys(part for entry in entries for part in _hints(content, entry)))
    return Cell(" / ".join(texts), entries[0].best, value, hint, "".join(findings) if len(findings) == 1 else "", run)


def _row(content: Content, run: str, has_teacher: bool) -> tuple[Cell, ...]:
    teacher = content.teachers[run]
    alone = "" if teacher is None or " + " in teacher else teacher
    cells = [Cell(run, run=run)] + [Cell(teacher or NOTHING, run=alone)] * has_teacher
    cells += [Cell(content.labels.get(run, "all"))] * bool(content.labels)
    cells += [_value_cell(content, content.entries[run, metric]) for metric in content.table.columns]
    if content.scored:
        measured = content.runs.get(run, Measured())
        n = measured.n
        cells += [Cell(str(n or NOTHING), value=n or None), Cell(SELECTIONS.get(measured.selection, NOTHING))]
    for metric in content.judged:
        cells += _verdict_cells(content.entries[run, metric])
    return tuple(cells)


def _value_cell(content: Content, entry: Entry) -> Cell:
    column, summary = COLUMNS[entry.metric], entry.summary
    if summary is None:
        return Cell(entry.uncompared or (NOT_RUN if entry.gap else NOTHING))
    hint = "\n".join(_hints(content, entry)[:1])
    if entry.gain is not None:
        # The table's n is the run's own.
        fewer = 1 < entry.gain.n < len(content.runs[entry.run].metrics)
        text = describe_gain(entry.gain, column) + f", n = {entry.gain.n}" * fewer
        finding = "" if not entry.gain.shown else "better" if entry.gain.mean > 0 else "worse"
        return Cell(text, entry.best, summary.mean, hint, finding, entry.run)
    spread = "" if summary.std is None else f" ± {column.show(summary.std)}"
    return Cell(column.show(summary.mean) + spread, entry.best, summary.mean, hint, run=entry.run)


def _hints(content: Content, entry: Entry) -> list[str]:
    """What stands behind a value: its seeds or its test; and behind a verdict, its test and its source."""
    column, gain, measured = COLUMNS[entry.metric], entry.gain, content.runs.get(entry.run, Measured())
    if gain is not None:
        tests = [f"{name} {p:.2g}" for name, p in (("p", gain.p), ("p by Holm's method", gain.p_holm)) if p is not None]
        hints = [", ".join([f"over {content.table.baseline}: paired t-test over {gain.n} seeds", *tests])]
    else:
        seeds = measured.by_seed(column.key) if column.file == METRICS and column.compute is None else {}
        hints = [", ".join(f"seed {seed}: {column.show(value)}" for seed, value in sorted(seeds.items()))]
    return [*hints, *_verdict_hints(entry)]


def _verdict_hints(entry: Entry) -> list[str]:
    number, verdict, column = entry.published, entry.verdict, COLUMNS[entry.metric]
    if number is None or verdict is None:
        return []
    hint: str = verdict.finding
    if verdict.tolerance is not None and column.better is None:
        hint += ": compared by the published digits"
    elif verdict.tolerance is not None:
        hint += f": noise explains a shortfall of {column.show(verdict.tolerance)} (one-sided t-test at 5 %)"
    runs = "" if number.n is None else f", n = {number.n}"
    epoch = "" if number.selection is None else f", {SELECTIONS[number.selection]}"
    return [hint, f"source: {number.source}{runs}{epoch}"]


def describe_gain(gain: Gain, column: Column) -> str:
    """A gain with all that says how far it can be trusted: ``+3.50 (2.10 to 4.90), p 0.002``."""
    text = column.show_difference(gain.mean)
    if gain.n == 1:
        return f"{text} (n = 1{_more_seeds(gain)})"
    if gain.p is None:
        return f"{text} (the same for all {gain.n} seeds)"
    interval = (
        "" if gain.low is None or gain.high is None else f" ({column.show(gain.low)} to {column.show(gain.high)})"
    )
    return f"{text}{interval}, {show_p(gain.p if gain.p_holm is None else gain.p_holm)}"


def show_p(p: float) -> str:
    """A p-value as papers print it; what is significant does not print as 0.050."""
    if p < 0.001:
        return "p < 0.001"
    if p >= 0.1:
        return f"p {p:.2f}"
    return f"p {p if p >= 0.05 else min(p, 0.049):.3f}"


def _more_seeds(gain: Gain) -> str:
    if not gain.mean:
        return ""
    if gain.seeds_needed is None:
        return "; needs seeds"
    number = f"about {gain.seeds_needed}" if gain.seeds_needed <= MOST_SEEDS else f"more than {MOST_SEEDS:,}"
    return f"; {number} seeds would show it"


def _verdict_cells(entry: Entry) -> list[Cell]:
    number, verdict = entry.published, entry.verdict
    if number is None or verdict is None:
        return [Cell(NOTHING)] * 3
    spread = "" if number.std is None else f" ± {number.std}"
    column = COLUMNS[entry.metric]
    value = column.show(float(number.value)) if column.decimals is None else f"{number.value:f}"
    difference = NOTHING if verdict.difference is None else column.show_difference(verdict.difference)
    hint = "\n".join(_verdict_hints(entry))
    return [
        Cell(value + spread, value=float(number.value), hint=hint),
        Cell(difference, value=verdict.difference, hint=hint),
        Cell(verdict.finding, hint=hint, finding=verdict.finding),
    ]


def _notes(content: Content) -> tuple[str, ...]:
    """What gains are over, which rows take more steps, what the runs were made by, and on what they were timed."""
    baseline = content.table.baseline
    notes = ["A rehearsal on generated images: the numbers mean nothing."] if content.rehearsal else []
    notes += [f"Gains are over {baseline}, paired by seed."] if baseline else []
    if content.table.grid is not None and content.labels:
        notes.append(f"Labels used: {'; '.join(f'{run} {labels}' for run, labels in content.labels.items())}.")
    notes += [
        f"{run} takes {ratio:.2g} times the steps of the other rows: an epoch of it shows images more than once."
        for run, ratio in content.longer.items()
    ]
    shown = [content.runs[run] for run in content.table.runs() if run in content.runs]
    compared = () if baseline in (None, *content.table.runs()) else content.runs.get(baseline or "", Measured()).origins
    origins = describe_origins([*(origin for measured in shown for origin in measured.origins), *compared])
    return (*notes, *([origins] if origins else []), *(_machine_notes(content, shown) if content.timed else ()))


def _machine_notes(content: Content, shown: Iterable[Measured]) -> tuple[str, ...]:
    profiles = [measured.profile for measured in shown if measured.profile is not None]
    machines = dict.fromkeys(machine for profile in profiles for machine in _machines(profile, content.table.columns))
    if not machines:
        return ()
    text = f"Measured on {' and '.join(machines)}, float32"
    if content.table.columns_along("speed"):
        batches = dict.fromkeys(str(profile.throughput_batch) for profile in profiles)
        text += f"; images a second in batches of {' or '.join(batches)}"
    return (f"{text}.",)


def _machines(profile: Profile, columns: Iterable[str]) -> list[str]:
    """What the times of some columns were taken on."""
    keys = [machine for column in columns if (machine := COLUMNS[column].machine) is not None]
    used = [(profile.value(name), profile.value(threads)) for name, threads in keys]
    return [
        name if threads is None else f"{name} ({threads} CPU thread{'s' * (threads > 1)})"
        for name, threads in used
        if name is not None
    ]
