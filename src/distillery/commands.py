"""Commands that look at runs, and make nothing; those of the stages are in cli.py."""

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from distillery.errors import UserError, printable
from distillery.experiment import load_experiment
from distillery.options import (
    CONFIG_DIR,
    AsJson,
    Config,
    ConfigDir,
    Rehearsal,
    Results,
    Run,
    Threads,
    Workers,
    print_json,
)  # fmt: skip
from distillery.paths import RESULTS
from distillery.process import limit_threads

Target = Annotated[
    str, Argument(metavar="RUN", help="EXPERIMENT/RUN or EXPERIMENT/RUN/seedK, or a file of its results.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to a command line."""
    for command in (compare, why, status, plan, logs, show):
        app.command()(command)


def compare(
    config: Config,
    run: Run,
    baseline: Annotated[str, Argument(metavar="BASELINE", help="Another run, or EXPERIMENT/RUN of the same images.")],
    results: Results = RESULTS,
    workers: Workers = 2,
    threads: Threads = None,
    rehearsal: Rehearsal = False,
    as_json: AsJson = False,
) -> None:
    """Compare a run with a baseline: specs, scores paired by seed, and which validation images each gets right."""
    from distillery.evaluation.compare import compare_runs
    from distillery.experiment.plan import Plan

    experiment = load_experiment(config, rehearsal=rehearsal)
    other, slash, name = baseline.rpartition("/")
    theirs = Plan(config.parent, rehearsal=rehearsal).experiment(other) if slash else experiment
    limit_threads(threads)
    compared = compare_runs((experiment, run), (theirs, name), results, workers)
    if as_json:
        print_json(compared.as_data())
    else:
        print(printable(compared.as_text()))


def why(
    target: Annotated[str, Argument(help="A file of results/, EXPERIMENT/RUN or EXPERIMENT.")],
    config_dir: ConfigDir = CONFIG_DIR,
    results: Results = RESULTS,
    rehearsal: Rehearsal = False,
    as_json: AsJson = False,
) -> None:
    """Say key by key what differs between a result's record and the present configuration, or that nothing does."""
    from distillery.experiment.why import describe, explain

    found = explain(target, config_dir, results, rehearsal=rehearsal)
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        for line in describe(found, target, results):
            print(printable(line))


def status(
    config: Annotated[
        Path | None, Argument(help="An experiment file; by default all experiments that have begun.")
    ] = None,
    watch: Annotated[bool, Option("--watch", help="Look again every two seconds, until Ctrl-C.")] = False,
    as_json: AsJson = False,
    config_dir: ConfigDir = CONFIG_DIR,
    results: Results = RESULTS,
    rehearsal: Rehearsal = False,
) -> None:
    """Show what each run is doing, from files alone: also from another terminal, and on a cluster."""
    from distillery.reporting.status import as_data, begun, board, read_status, watch_board

    if watch and (as_json or not sys.stdout.isatty()):
        raise UserError("status: --watch needs a terminal, and no --json; leave it out")
    experiments = []
    for path in begun(config_dir, results) if config is None else [config]:
        try:
            experiments.append(load_experiment(path, rehearsal=rehearsal))
        except UserError as error:
            if config is not None:
                raise
            print(printable(f"distillery: {error}"), file=sys.stderr)  # of the others there is still something to say

    look = partial(read_status, experiments, results)

    if watch:
        watch_board(look)
    else:
        print(as_data(look()) if as_json else board(look()))


def plan(
    config: Annotated[Path | None, Argument(help="An experiment file; by default a line for each.")] = None,
    device: Annotated[
        Literal["gpu", "cpu"] | None, Option(help="What it will run on; by default what the last run ran on.")
    ] = None,
    as_json: AsJson = False,
    config_dir: ConfigDir = CONFIG_DIR,
    results: Results = RESULTS,
    rehearsal: Rehearsal = False,
) -> None:
    """Say what is left to be made and what it will cost: jobs, GPU- or CPU-hours, disk, and where each is from."""
    from distillery.experiment.loading import experiment_names
    from distillery.training.costs import costs_data, describe_costs, plan_costs, summary

    paths = [config] if config else [config_dir / f"{name}.yaml" for name in experiment_names(config_dir)]
    found = []
    for path in paths:
        try:
            found.append(plan_costs(load_experiment(path, rehearsal=rehearsal), results, device))
        except UserError as error:
            if config is not None:
                raise
            print(printable(f"distillery: {error}"), file=sys.stderr)  # of the others there is still something to say
            continue
        if not as_json:
            print(printable(describe_costs(found[-1]) if config else summary(found[-1])), flush=True)
    if as_json:
        print_json({"experiments": [costs_data(costs) for costs in found]})


def logs(
    run: Target,
    lines: Annotated[int, Option(min=0, max=100_000, help="How many of its last lines to show.")] = 15,
    as_json: AsJson = False,
    config_dir: ConfigDir = CONFIG_DIR,
    results: Results = RESULTS,
) -> None:
    """Show where a run's jobs have logged, why one failed, in its one line, and the last lines of that log."""
    from distillery.reporting.runs import describe_logs, find_run, logs_data, read_logs

    experiment, name, seeds = find_run(run, config_dir, results)
    found = read_logs(experiment, name, seeds, results, lines)
    if as_json:
        print(logs_data(found))
        return
    if not found:
        raise UserError(f"{run}: no job of the workflow has logged anything; a command by hand says it on its terminal")
    for line in describe_logs(found):
        print(printable(line))


def show(
    run: Target,
    as_json: AsJson = False,
    config_dir: ConfigDir = CONFIG_DIR,
    results: Results = RESULTS,
    rehearsal: Rehearsal = False,
) -> None:
    """Show what a run is and how it came to be: state, digest, results, teacher, provenance, whole spec."""
    from distillery.reporting.runs import describe_run, find_run, read_run_facts

    experiment, name, seeds = find_run(run, config_dir, results, rehearsal=rehearsal)
    facts: dict[str, Any] = read_run_facts(experiment, name, seeds[0], results)
    print(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else printable(describe_run(facts)))
