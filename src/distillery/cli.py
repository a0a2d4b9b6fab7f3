"""The command line: every stage of the workflow, also by hand.

Heavy libraries are imported inside the commands that need them, so that the light ones answer at once.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from distillery import __version__, commands
from distillery.adopt.command import adopt
from distillery.errors import UserError, machine_at_fault, printable
from distillery.experiment import load_experiment
from distillery.export.command import export
from distillery.imports import import_fabric
from distillery.options import (
    CONFIG_DIR,
    AsJson,
    Config,
    ConfigDir,
    Dataset,
    Model,
    Partial,
    Rehearsal,
    Results,
    Run,
    Seed,
    Speed,
    Threads,
    Track,
    Workers,
    finite,
    plain_name,
    print_json,
)  # fmt: skip
from distillery.paths import RESULTS
from distillery.process import end_process, garbage_kept, keep_memory, limit_threads

app = typer.Typer(
    rich_markup_mode=None,
    help="Image-classification knowledge distillation that others can rerun and trust.",
    epilog="Each stage of the workflow is one command; `snakemake results/tables/digits.md` runs them all.",
)


def main(arguments: list[str] | None = None) -> None:
    """Run one command; bad input ends with one line on standard error and exit code 2."""
    command = typer.main.get_command(app)
    if "_DISTILLERY_COMPLETE" in os.environ:  # the shell asks, not the user
        command.main(prog_name="distillery")
    try:
        code = _invoke(command, sys.argv[1:] if arguments is None else list(arguments))
        # What a command has said must have arrived: here, a full disk or a closed pipe still has its answer.
        if code == 0 and sys.stdout is not None:
            sys.stdout.flush()
    except UserError as error:
        code = _fail(str(error))
    except typer.TyperException as error:
        where = getattr(error, "ctx", None)
        path = where.command_path if where else "distillery"
        code = _fail(f"{' '.join(error.format_message().split()).rstrip('.')}; see {path} --help")
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    except OSError as error:
        # A read-only folder, a full disk, a file where a folder should be: one's own machine to mend.
        where = f"{error.filename}: " if error.filename is not None else ""
        code = _fail(f"{where}{error.strerror or error}; mend it, and the same command continues from what is saved")
    except RuntimeError as error:
        said = machine_at_fault(error)
        if said is None:
            raise
        code = _fail(said)
    if arguments is None:
        end_process(code)
    sys.exit(code)


def _invoke(command: Any, given: list[str]) -> int:  # noqa: ANN401
    # Not command.main(), which takes an EOFError out of a library for the user's Ctrl-C.
    try:
        with command.make_context("distillery", given or ["--help"]) as context:
            return command.invoke(context) or 0
    except typer.Exit as end:
        return end.exit_code


def _fail(line: str) -> int:
    in_one = line.replace("\n", "\\n").replace("\t", "\\t")
    print(f"distillery: {printable(in_one)}", file=sys.stderr)
    return 2


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"distillery {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, Option("--version", callback=_show_version, is_eager=True)] = False) -> None:
    pass


@app.command()
def init(
    folder: Annotated[Path, Argument(help="An empty or a new folder.")] = Path(),
    dvc: Annotated[bool, Option("--dvc", help="Keep versions of data and results with DVC.")] = False,
) -> None:
    """Start a project of your own: an example that runs, data sets, recipes, the workflow and its profiles."""
    from distillery.project import create_project

    create_project(folder, dvc=dvc)


@app.command()
def check(config: Config, results: Results = RESULTS, workers: Workers = 2, as_json: AsJson = False) -> None:
    """Validate an experiment file with its models, list its runs, and say what they will need of this machine."""
    from tabulate import tabulate

    from distillery.training.check import check_experiment, list_runs, notes
    from distillery.training.forecast import Forecast

    experiment = load_experiment(config)
    forecast = Forecast(experiment, results, workers)
    check_experiment(experiment, forecast)
    forecast.check_networks()
    runs, said, warnings = list_runs(experiment), list(notes(experiment, forecast)), list(forecast.warnings())
    if as_json:
        print_json({"runs": runs, "notes": said, "warnings": warnings})
        return
    print(printable("\n".join([tabulate(runs, headers="keys", tablefmt="github"), "", *said])))
    for warning in warnings:
        print(printable(f"warning: {warning}"), file=sys.stderr)


@app.command()
def download(dataset: Dataset, config_dir: ConfigDir = CONFIG_DIR) -> None:
    """Fetch a data set's raw images if they are absent, as preparing them would: for machines that have a network."""
    from distillery.data.fetch import download_raw
    from distillery.experiment.loading import load_dataset

    download_raw(dataset, load_dataset(config_dir / "datasets.yaml", dataset))


@app.command()
def prepare(
    dataset: Dataset,
    config_dir: ConfigDir = CONFIG_DIR,
    results: Results = RESULTS,
    workers: Workers = 2,
    rehearsal: Rehearsal = False,
) -> None:
    """Turn raw images into Arrow shards and a manifest."""
    from distillery.data.prepare import prepare_dataset
    from distillery.experiment.plan import Plan
    from distillery.paths import dataset_folder

    raw = Plan(config_dir, rehearsal=rehearsal).dataset(dataset)
    if rehearsal:
        raw = raw.model_copy(update={"path": str(results.parent / raw.path)})
    prepare_dataset(dataset, raw, dataset_folder(results, dataset), workers)


@app.command()
def data(
    dataset: Dataset,
    recipe: Annotated[str | None, Option(help="Whose augmentation to show; by default that of most runs.")] = None,
    output: Annotated[Path | None, Option(help="By default RESULTS/figures/datasets/DATASET.png.")] = None,
    config_dir: ConfigDir = CONFIG_DIR,
    results: Results = RESULTS,
) -> None:
    """Show what a prepared data set holds, and draw samples as a recipe augments them."""
    from distillery.data.show import show_dataset

    for part in show_dataset(dataset, recipe, output, config_dir, results):
        print(printable(part))


@app.command()
def train(
    config: Config,
    run: Run,
    seed: Seed = None,
    results: Results = RESULTS,
    workers: Workers = 2,
    threads: Threads = None,
    device_batch: Annotated[int | None, Option(min=1, help="Most images on one device; the rest accumulates.")] = None,
    loader: Annotated[
        Literal["auto", "memory", "torch", "dali"],
        Option(help="What prepares images; auto: memory where they fit, torch elsewhere."),
    ] = "auto",
    cache: Annotated[
        str, Option(help="A folder on a local disk: images are decoded once a session and kept there, 3 bytes a pixel.")
    ] = "",
    checkpoint_seconds: Annotated[float, Option(min=0, help="Time between checkpoints.", callback=finite)] = 60.0,
    expect_digest: Annotated[str | None, Option(help="Refuse to train if the run's digest is another.")] = None,
    requeue: Annotated[bool, Option("--requeue", help="Have Slurm start this job again after a warning.")] = False,
    track: Track = "",
    measure: Annotated[bool, Option("--measure", help="Measure it, too, for `evaluate --measured`.")] = False,
    speed: Speed = "",
    rehearsal: Rehearsal = False,
) -> int:
    """Train a run, or import its weights; continue where it was stopped."""
    from distillery.cluster.signals import STOPPED, Stopped, StopSignal

    stop = StopSignal()
    if requeue:
        # A warning may come while torch is still being imported: the run then saves itself before its next step.
        stop.install(signal.SIGTERM, signal.SIGUSR1)
    from distillery.tracking import chosen_trackers

    experiment = load_experiment(config, rehearsal=rehearsal)
    seed = experiment.seeds(run)[0] if seed is None else seed
    digest = experiment.spec(run, seed).digest
    if expect_digest not in (None, digest):
        raise UserError(
            f"{config}: {run} was changed after this job was planned (its digest is {digest}, not {expect_digest}); "
            "start snakemake again"
        )
    import_fabric()
    from distillery.cluster.launch import note_finished
    from distillery.cluster.requeue import requeue_this_job
    from distillery.training.job import Job, Machine
    from distillery.training.run import make_run
    from distillery.training.speed import chosen_speed

    machine = Machine(
        workers,
        threads,
        device_batch,
        checkpoint_seconds,
        loader,
        chosen_trackers(track),
        measure,
        Path(cache) if cache else None,
        chosen_speed(speed),
    )
    try:
        make_run(Job(experiment, run, seed, results, machine), stop)
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"distillery: {stopped}: saved; the same command continues from here", file=sys.stderr, flush=True)
            if requeue and str(stopped) != "SIGINT":
                requeue_this_job()
        return 130 if str(stopped) == "SIGINT" else STOPPED
    note_finished()
    return 0


@app.command()
def answer(
    config: Config,
    teacher: Annotated[str, Argument(help="A run that teaches others which say `answers: bank`.")],
    address: Annotated[str | None, Option(help="Only the bank of this address; by default all of its banks.")] = None,
    results: Results = RESULTS,
    workers: Workers = 2,
    threads: Threads = None,
    device_batch: Annotated[int | None, Option(min=1, help="Most images on the device at once.")] = None,
    speed: Speed = "",
    rehearsal: Rehearsal = False,
) -> int:
    """Let a teacher answer once for all runs that learn from its bank; continue where it was stopped."""
    from distillery.cluster.signals import STOPPED, Stopped, StopSignal
    from distillery.experiment.bank import banks_of

    stop = StopSignal()
    experiment = load_experiment(config, rehearsal=rehearsal)
    experiment.seeds(teacher)
    banks = banks_of(experiment, teacher)
    if not banks:
        raise UserError(f"{config}: no run says teacher: {{run: {teacher}, answers: bank}}")
    if address is not None and address not in banks:
        raise UserError(f"--address: {teacher} has no bank {address}; valid: {', '.join(sorted(banks))}")
    import_fabric()
    from distillery.training.answers import record_answers
    from distillery.training.job import Job, Machine
    from distillery.training.speed import chosen_speed

    machine = Machine(workers, threads, device_batch, speed=chosen_speed(speed))
    try:
        for run, seed in (banks[each][0] for each in (banks if address is None else [address])):
            jobs = Job(experiment, run, seed, results, machine).by_teacher()
            record_answers(jobs[experiment.teachers_of(run).index(teacher)], stop)
    except Stopped as stopped:
        print(f"distillery: {stopped}: saved; the same command continues from here", file=sys.stderr, flush=True)
        return 130 if str(stopped) == "SIGINT" else STOPPED
    return 0


@app.command()
def evaluate(
    what: Annotated[list[str], Argument(metavar="CONFIG RUN | CHECKPOINT")],
    dataset: Annotated[
        str | None, Option(help="A prepared data set, to measure checkpoints on.", callback=plain_name)
    ] = None,
    teacher: Annotated[str | None, Option(help="A checkpoint with which to report the others' agreement.")] = None,
    size: Annotated[int | None, Option(min=1, help="Side of the images, for weights that do not say it.")] = None,
    resize: Annotated[int | None, Option(min=1, help="Short side before cropping; by default the size.")] = None,
    interpolation: Annotated[Literal["nearest", "bilinear", "bicubic"] | None, Option(help="Of the resizing.")] = None,
    normalize: Annotated[Literal["dataset", "imagenet", "none"] | None, Option(help="By which statistics.")] = None,
    model_args: Annotated[str, Option(help="Further arguments of the models, as YAML.")] = "{}",
    seed: Seed = None,
    results: Results = RESULTS,
    workers: Workers = 2,
    threads: Threads = None,
    measured: Annotated[
        bool, Option("--measured", help="Take what the run's training has measured, if it did.")
    ] = False,
    rehearsal: Rehearsal = False,
    as_json: AsJson = False,
) -> None:
    """Measure a run, or any checkpoints side by side, on the validation images.

    A run is given by its experiment file and its name. With --dataset, each CHECKPOINT is MODEL=WEIGHTS, with a file,
    torchvision:TAG or timm:TAG as weights; or the folder of a finished run.
    """
    if dataset is None:
        if len(what) != 2:
            raise UserError(
                "evaluate: expected CONFIG RUN, as config/digits.yaml resnet20; or --dataset NAME MODEL=WEIGHTS ..."
            )
        from distillery.evaluation.measured import take_measured

        experiment, run = load_experiment(Path(what[0]), rehearsal=rehearsal), what[1]
        seed = experiment.seeds(run)[0] if seed is None else seed
        metrics = take_measured(experiment, run, seed, results) if measured else None
        how = "" if metrics is None else ", measured at the end of its training"
        if metrics is None:
            from distillery.evaluation.evaluate import evaluate_run

            keep_memory()
            limit_threads(threads)
            metrics = evaluate_run(experiment, run, seed, results, workers=workers)
        if as_json:
            print_json(metrics)
        else:
            values = [f"{name} {value:.2f}" for name, value in metrics.items() if isinstance(value, float)]
            print(", ".join(values) + how)
        return

    from distillery.evaluation.checkpoints import evaluate_checkpoints, table_of
    from distillery.experiment.reading import parse_yaml, validate
    from distillery.experiment.schema.recipe import Preprocess
    from distillery.paths import dataset_folder

    keep_memory()
    limit_threads(threads)
    given = {"size": size, "resize": resize, "interpolation": interpolation, "normalize": normalize}
    given = {key: value for key, value in given.items() if value is not None}
    preprocess = validate(Preprocess, given, Path("command line")) if given else None
    arguments = parse_yaml(model_args, "--model-args")
    if not isinstance(arguments, dict):
        raise UserError(f"--model-args: {model_args!r} is no mapping; give e.g. '{{shortcut: projection}}'")
    folder = dataset_folder(results, dataset)
    rows = evaluate_checkpoints(what, teacher, folder, preprocess, arguments, workers)
    if as_json:
        print_json(rows)
    else:
        print(printable(table_of(rows)))


@app.command()
def verify(
    config: Config,
    rerun: Annotated[bool, Option("--rerun", help="Measure the networks again, too.")] = False,
    replay: Annotated[bool, Option("--replay", help="Take each run's first steps again, too.")] = False,
    results: Results = RESULTS,
    workers: Workers = 2,
    rehearsal: Rehearsal = False,
    as_json: AsJson = False,
) -> int:
    """Look again at every checksum of an experiment's results, and name each file that is not what was written."""
    from distillery.evaluation.verify import verify_experiment
    from distillery.paths import records_list, run_folder

    experiment = load_experiment(config, rehearsal=rehearsal)
    files, faults, replayed = 0, list[str](), list[str]()

    def say(line: str) -> None:
        if not as_json:
            print(line, flush=True)

    def note(fault: str) -> None:
        faults.append(fault)
        if not as_json:
            _fail(fault)

    for _, fault in verify_experiment(experiment, results, rerun=rerun):
        files += 1
        if fault:
            note(fault)
    if not files:
        raise UserError(f"{results}: has no results of {config} that could be looked at")
    say(f"{files} files looked at, {len(faults)} of them damaged, replaced, edited or out of date")
    if records_list(results, experiment.name).is_file():
        folders = [run_folder(results, experiment.name, *member) for member in experiment.members()]
        there = [folder for folder in folders if (folder / "run.json").is_file()]
        weights = sum((folder / "weights.safetensors").is_file() for folder in there)
        say(f"records of {len(there)} networks, {weights} of them with their weights")
    for run, seed in experiment.members() if replay else ():
        if (run_folder(results, experiment.name, run, seed) / "run.json").is_file():
            import_fabric()
            from distillery.training.replay import replay_run

            try:
                replayed.append(replay_run(experiment, run, seed, results, workers))
                say(replayed[-1])
            except UserError as error:
                note(str(error))
    if as_json:
        print_json({"files": files, "faults": faults, "replayed": replayed})
    return 2 if faults else 0


@app.command()
def probe(
    config: Config,
    run: Run,
    seed: Seed = None,
    results: Results = RESULTS,
    workers: Workers = 2,
    threads: Threads = None,
    rehearsal: Rehearsal = False,
) -> None:
    """Measure a run's embedding: by nearest neighbours, and by a linear classifier on the frozen network."""
    from distillery.evaluation.probe import probe_run

    keep_memory()
    limit_threads(threads)
    experiment = load_experiment(config, rehearsal=rehearsal)
    seed = experiment.seeds(run)[0] if seed is None else seed
    probes = probe_run(experiment, run, seed, results, workers=workers)
    print(", ".join(f"{name} {value:.2f}" for name, value in probes.items() if isinstance(value, float)))


@app.command()
def profile(
    config: Config, run: Run, results: Results = RESULTS, threads: Threads = None, rehearsal: Rehearsal = False
) -> None:
    """Count parameters and operations of a run's network and time it on this machine."""
    from distillery.evaluation.profile import profile_run

    limit_threads(threads)
    facts = profile_run(load_experiment(config, rehearsal=rehearsal), run, results)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))


@app.command()
def taps(
    teacher: Model,
    student: Model,
    size: Annotated[int, Option(min=1, max=4096, help="Side of the images in pixels.")] = 224,
    teacher_size: Annotated[int | None, Option(min=1, max=4096, help="Of the teacher's, if another.")] = None,
) -> None:
    """Show where the features of a teacher and a student would be taken, and how they pair up."""
    from distillery.models import create_model
    from distillery.models.taps import describe_pair, plan_taps

    sizes = (teacher_size or size, size)
    plans = [
        plan_taps(create_model(name, 1000), side, name) for name, side in zip((teacher, student), sizes, strict=True)
    ]
    print(describe_pair(*plans))


@app.command()
def tabulate(
    config: Config,
    table: Annotated[str | None, Argument(help="Only this table of the experiment; by default all.")] = None,
    partial: Partial = False,
    results: Results = RESULTS,
    track: Track = "",
    rehearsal: Rehearsal = False,
) -> None:
    """Write the tables of an experiment, or one of them alone."""
    from distillery.reporting.observed import show_tables
    from distillery.reporting.tables import tabulate_experiment, tabulate_table
    from distillery.tracking import chosen_trackers

    trackers = chosen_trackers(track)
    with garbage_kept():
        experiment = load_experiment(config, rehearsal=rehearsal)
        if table is None:
            tabulate_experiment(experiment, results, experiment.published, partial=partial)
        else:
            tabulate_table(experiment, table, results, experiment.published, partial=partial)
    if table is None:
        show_tables(experiment, results, trackers)


@app.command()
def plot(
    config: Config,
    partial: Partial = False,
    results: Results = RESULTS,
    track: Track = "",
    rehearsal: Rehearsal = False,
) -> None:
    """Draw the figures of an experiment."""
    from distillery.reporting.figures import plot_experiment
    from distillery.reporting.observed import show_figures
    from distillery.tracking import chosen_trackers

    trackers = chosen_trackers(track)
    experiment = load_experiment(config, rehearsal=rehearsal)
    plot_experiment(experiment, results, experiment.published, partial=partial)
    show_figures(experiment, results, trackers)


commands.register(app)
app.command()(adopt)
app.command()(export)


@app.command()
def schema(output: Annotated[Path, Option(help="Folder to write to.")] = Path("workflow/schemas")) -> None:
    """Write the JSON Schemas that editors check the YAML files with."""
    from distillery.experiment.json_schema import write_schemas

    write_schemas(output)
