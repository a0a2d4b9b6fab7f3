"""The benchmark of every term: tunes KD on held-out images, then trains, measures and tabulates `cifar10-laptop`.

python scripts/benchmark.py         all of it; stops after the tuning when the page's run `kd-tuned` has other settings
                                    than those that were best
python scripts/benchmark.py keep    its records, from results/ into docs/benchmarks/, and what follows from them
python scripts/benchmark.py table   tables, figures, cards and the README's results again, from the records alone
"""

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from distillery.errors import UserError
from distillery.experiment import Experiment, load_experiments
from distillery.experiment.schema.columns import COLUMNS
from distillery.paths import figure_folder, records_list, run_folder
from distillery.reporting.content import Content, gather
from distillery.reporting.findings import describe_tally, kind_of, tally
from distillery.reporting.measurements import read_measurements
from distillery.reporting.origins import origin_of
from distillery.reporting.records import keep_records, report_records
from distillery.reporting.run_cards import card_link, cards_path, device_of, read_records, seconds_of
from distillery.reporting.sheets import describe_gain

TUNING, BENCHMARK = "cifar10-laptop-tuning", "cifar10-laptop"
PLAIN, TUNED = "plain", "kd-tuned"  # the baselines, of the tables `plain` and `tuned`
CONFIG, RESULTS, KEPT = Path("config"), Path("results"), Path("docs/benchmarks")
BEGIN, END = "<!-- results: `make benchmark-table` writes what follows -->\n", "<!-- end of the results -->\n"
NOTHING = "**It has not been run to its end yet, so there are no results here.**\n"


def main(arguments: list[str]) -> int:
    """Run one command; 0 if it did what it says."""
    try:
        {(): run, ("keep",): keep, ("table",): table}[tuple(arguments)]()
    except KeyError:
        print(__doc__, file=sys.stderr)
        return 2
    except UserError as error:
        print(f"distillery: {error}", file=sys.stderr)
        return 2
    return 0


def run() -> None:
    """Tune, then run the benchmark, and keep its records."""
    make(TUNING)
    experiments = load_experiments(CONFIG)
    scores = held_out(experiments[TUNING], RESULTS)
    for name, top1 in sorted(scores.items(), key=lambda score: -score[1]):
        print(f"{name}: {top1:.2f} % of the held-out images")
    best = max(scores, key=lambda name: scores[name])
    objective = experiments[TUNING].config.runs[best].objective
    if experiments[BENCHMARK].config.runs[TUNED].objective != objective:
        raise UserError(
            f"{CONFIG / BENCHMARK}.yaml: {BENCHMARK}.runs.{TUNED}.objective: {best} of {TUNING} was best; write "
            f"{objective.model_dump(exclude_unset=True, exclude_none=True)}, and call this again"
        )
    make(BENCHMARK)
    keep()


def make(experiment: str) -> None:
    """All of an experiment; what is there is kept.

    Raises:
        SystemExit: a job failed.
    """
    done = subprocess.run(
        ["snakemake", "--cores", "all", "--keep-going", f"results/tables/{experiment}.md"], check=False
    )
    if done.returncode:
        raise SystemExit(done.returncode)


def held_out(tuning: Experiment, results: Path) -> dict[str, float]:
    """Of each student of the tuning, its last top-1 of the held-out images, in %."""
    scores = {}
    for name, run in tuning.config.runs.items():
        path = run_folder(results, tuning.name, name, 0) / "history.csv"
        if run.teacher is not None and path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                scores[name] = float(list(csv.DictReader(file))[-1]["val_top1"])
    return scores


def keep() -> None:
    """Copy the records into docs/, and write what follows from them."""
    experiments = load_experiments(CONFIG)
    for name in (TUNING, BENCHMARK):
        for line in keep_records(experiments[name], RESULTS, KEPT):
            print(f"{name}/{line}: left out")
    table()


def table() -> None:
    """Write tables, figures, cards and the README's results from the records in docs/."""
    experiments = load_experiments(CONFIG)
    kept = [name for name in (TUNING, BENCHMARK) if records_list(KEPT, name).is_file()]
    for name in kept:
        report_records(experiments[name], KEPT)
    page = KEPT / "README.md"
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{page}: lacks the line {(END if begin else BEGIN).strip()!r}, between which results stand")
    found = "\n".join(results_of(experiments)) if BENCHMARK in kept else NOTHING
    page.write_text(f"{before}{begin}\n{found}\n{end}{after}", encoding="utf-8")


def results_of(experiments: dict[str, Experiment]) -> Iterator[str]:
    """The README's results, Markdown blocks: how it was run, what the counts say, every run, and the figures."""
    experiment = experiments[BENCHMARK]
    runs = read_measurements(experiment, KEPT, partial=True)
    tables = experiment.config.tables
    plain, tuned = (gather(experiment, name, tables[name], runs, {}) for name in ("plain", "tuned"))
    yield f"{made_by([experiments[TUNING], experiment])}\n"
    yield f"{tuned_by(experiments)}\n"
    yield f"### Do feature terms beat tuned KD at equal steps?\n\nOver `{TUNED}`, by top-1:\n"
    yield "\n".join([*describe_tally(tally(experiment, tuned, [TUNED]), TUNED), ""])
    yield f"### Does a term add to the student alone?\n\nOver `{PLAIN}`, by top-1:\n"
    yield "\n".join([*describe_tally(tally(experiment, plain, [TUNED]), PLAIN), ""])
    yield "### Every run\n"
    yield (
        "Gains in points of top-1, with 95 % intervals, p corrected over the rows; bold is significant. A run leads to "
        f"its card; [the whole tables](tables/{BENCHMARK}.md) have more columns, and say how to read them.\n"
    )
    yield "\n".join([*rows(experiment, plain, tuned), ""])
    for path in sorted(figure_folder(KEPT, BENCHMARK).glob("*_gains.svg")):
        over = plain if path.stem.startswith("plain") else tuned
        yield f"![{over.title}: gains over {over.table.baseline}]({path.relative_to(KEPT).as_posix()})\n"


def made_by(experiments: list[Experiment]) -> str:
    """By which code, on which devices and in what time the networks were trained."""
    records = [
        record
        for experiment in experiments
        for name in experiment.recipes
        for record in read_records(experiment, name, KEPT).values()
    ]
    if not records:
        return "No student was trained yet."
    sessions = [session for record in records for session in record["sessions"]]
    origins = [origin_of(session["provenance"]) for session in sessions]
    codes = sorted({", ".join([origin.code, *origin.versions]) for origin in origins})
    devices = sorted({device_of(session) for session in sessions})
    hours = sum(map(seconds_of, records)) / 3600
    return (
        f"Distillery itself trained these {len(records)} networks ({'; '.join(codes)}), on {' and '.join(devices)}. "
        f"Their own times add up to {hours:.1f} hours, {60 * hours / len(records):.1f} minutes each; several may have "
        "run side by side."
    )


def tuned_by(experiments: dict[str, Experiment]) -> str:
    """Which settings of KD were best, and whether the second baseline has them."""
    tuning, scores = experiments[TUNING], held_out(experiments[TUNING], KEPT)
    if not scores:
        return f"No record of the tuning was kept, so `{TUNED}` is KD with its usual settings."
    best, *others = sorted(scores, key=lambda name: -scores[name])
    same = experiments[BENCHMARK].config.runs[TUNED].objective == tuning.config.runs[best].objective
    span = f"; the others {scores[others[-1]]:.2f} to {scores[others[0]]:.2f} %" if others else ""
    return (
        f"Of {len(scores)} settings of KD, {card_of(TUNING, best)} was best on the held-out images "
        f"({scores[best]:.2f} %{span}); `{TUNED}` {'has them' if same else '**does not have them**'}."
    )


def rows(experiment: Experiment, plain: Content, tuned: Content) -> Iterator[str]:
    """A row for each run that was measured, in the order of the page."""
    yield f"| run | kind | top-1 (%) | over `{PLAIN}` | over `{TUNED}` | seeds |"
    yield "|---|---|--:|--:|--:|--:|"
    for name in experiment.config.runs:
        summary = plain.entries[name, "top1"].summary if (name, "top1") in plain.entries else None
        if summary is None:
            continue
        top1 = COLUMNS["top1"].show(summary.mean)
        top1 += "" if summary.std is None else f" ± {COLUMNS['top1'].show(summary.std)}"
        kind = {PLAIN: "baseline", TUNED: "baseline"}.get(name) or kind_of(experiment, name) or "teacher"
        cells = [card_of(BENCHMARK, name), kind.replace("terms", "term"), top1]
        yield f"| {' | '.join([*cells, gain(plain, name), gain(tuned, name), str(summary.n)])} |"


def card_of(experiment: str, name: str) -> str:
    """A link to a run's card."""
    return card_link(name, cards_path(Path(), experiment).as_posix())


def gain(content: Content, name: str) -> str:
    """A cell of gains; bold where it is significant."""
    entry = content.entries.get((name, "gain"))
    if entry is None or entry.gain is None:
        return "–"
    text = describe_gain(entry.gain, COLUMNS["gain"]).replace("<", r"\<")
    return f"**{text}**" if entry.gain.shown else text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
