"""The command line: every stage of the workflow, also by hand.

Heavy libraries are imported inside the commands that need them, so that the light ones answer at once.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from distillery import __version__
from distillery.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """Run one command; bad input ends with one line on standard error and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        code = options.command(options)
    except UserError as error:
        print(f"distillery: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    sys.exit(code or 0)


def check(options: argparse.Namespace) -> None:
    """Validate an experiment file, its models and their arguments included, and list its runs."""
    from tabulate import tabulate

    from distillery.experiment import load_experiment
    from distillery.models.registry import check_arguments, explain_unknown, is_model

    experiment = load_experiment(options.config)
    built = set()
    for run, line in experiment.config.runs.items():
        where = f"{experiment.path}: {experiment.name}.runs.{run}"
        if not is_model(line.model):
            raise UserError(f"{where}.model: {explain_unknown(line.model)}")
        network = (line.model, *sorted(line.model_args.items()))
        if line.model_args and network not in built:
            try:
                check_arguments(line.model, line.model_args)
            except UserError as error:
                raise UserError(f"{where}.{error}") from None
            built.add(network)
    rows = [
        (run, seed, experiment.teacher(run) or "", experiment.config.runs[run].model, experiment.spec(run, seed).digest)
        for run, seed in experiment.members()
    ]
    print(tabulate(rows, headers=("run", "seed", "teacher", "model", "digest"), tablefmt="github"))


def prepare(options: argparse.Namespace) -> None:
    """Turn raw images into Arrow shards and a manifest."""
    from distillery.data.prepare import prepare_dataset
    from distillery.experiment.experiment import load_dataset
    from distillery.paths import dataset_folder

    dataset = load_dataset(options.config_dir / "datasets.yaml", options.dataset)
    prepare_dataset(options.dataset, dataset, dataset_folder(options.results, options.dataset), options.workers)


def download(options: argparse.Namespace) -> None:
    """Fetch a data set's raw images if they are absent, as preparing them would: for machines that have a network."""
    from distillery.data.fetch import download_raw
    from distillery.experiment.experiment import load_dataset

    download_raw(options.dataset, load_dataset(options.config_dir / "datasets.yaml", options.dataset))


def data(options: argparse.Namespace) -> None:
    """Show what a prepared data set holds, and draw samples as a recipe augments them."""
    from distillery.data.arrow import ArrowImages
    from distillery.data.contact_sheet import draw_contact_sheet
    from distillery.data.manifest import load_manifest
    from distillery.data.overview import describe_manifest
    from distillery.experiment.recipes import load_recipe, usual_recipe
    from distillery.paths import contact_sheet_path, dataset_folder

    folder = dataset_folder(options.results, options.dataset)
    manifest = load_manifest(folder)
    print(describe_manifest(manifest))
    name = options.recipe or usual_recipe(options.config_dir, options.dataset)
    if name is None:
        print(
            f"\nNo experiment of {options.config_dir} trains on {options.dataset}; name a --recipe to see it augmented."
        )
        return
    recipe = load_recipe(options.config_dir, name)
    path = options.output or contact_sheet_path(options.results, options.dataset)
    draw_contact_sheet(manifest, ArrowImages(folder, manifest, "train"), name, recipe, path)
    print(f"\nSamples as the recipe {name} augments them: {path}")


def train(options: argparse.Namespace) -> int:
    """Train a run, or import its weights; continue where it was stopped."""
    from distillery.cluster.signals import STOPPED, Stopped, StopSignal
    from distillery.experiment import load_experiment

    stop = StopSignal()
    if options.requeue:
        # A warning may come while torch is still being imported: the run then takes one step and saves it.
        stop.install(signal.SIGTERM, signal.SIGUSR1)
    experiment = load_experiment(options.config)
    seed = experiment.seeds(options.run)[0] if options.seed is None else options.seed
    digest = experiment.spec(options.run, seed).digest
    if options.expect_digest not in (None, digest):
        raise UserError(
            f"{options.config}: {options.run} was changed after this job was planned (its digest is {digest}, not "
            f"{options.expect_digest}); start snakemake again"
        )
    from distillery.cluster.requeue import requeue_this_job
    from distillery.training.job import Job, Machine
    from distillery.training.run import make_run

    machine = Machine(
        options.workers, options.threads, options.device_batch, options.checkpoint_seconds, options.loader
    )
    try:
        make_run(Job(experiment, options.run, seed, options.results, machine), stop)
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"distillery: {stopped}: saved; the same command continues from here", file=sys.stderr, flush=True)
            if options.requeue and str(stopped) != "SIGINT":
                requeue_this_job()
        return 130 if str(stopped) == "SIGINT" else STOPPED
    return 0


def evaluate(options: argparse.Namespace) -> None:
    """Measure a run, or any checkpoints side by side, on the validation images."""
    if options.dataset is not None:
        return _evaluate_checkpoints(options)
    if len(options.what) != 2:
        raise UserError(
            "evaluate: expected CONFIG RUN, as config/digits.yaml resnet20; or --dataset NAME MODEL=WEIGHTS ..."
        )
    from distillery.evaluation.evaluate import evaluate_run
    from distillery.experiment import load_experiment

    _limit_threads(options.threads)
    experiment, run = load_experiment(Path(options.what[0])), options.what[1]
    seed = experiment.seeds(run)[0] if options.seed is None else options.seed
    metrics = evaluate_run(experiment, run, seed, options.results, workers=options.workers)
    print(", ".join(f"{name} {value:.2f}" for name, value in metrics.items() if isinstance(value, float)))
    return None


def _evaluate_checkpoints(options: argparse.Namespace) -> None:
    import yaml

    from distillery.evaluation.checkpoints import evaluate_checkpoints, table_of
    from distillery.experiment.reading import validate
    from distillery.experiment.schema.recipe import Preprocess
    from distillery.paths import dataset_folder

    _limit_threads(options.threads)
    told = {key: getattr(options, key) for key in ("size", "resize", "interpolation", "normalize")}
    told = {key: value for key, value in told.items() if value is not None}
    preprocess = validate(Preprocess, told, Path("command line")) if told else None
    folder = dataset_folder(options.results, options.dataset)
    try:
        arguments = yaml.safe_load(options.model_args)
    except yaml.YAMLError:
        arguments = None
    if not isinstance(arguments, dict):
        raise UserError(f"--model-args: {options.model_args!r} is no mapping; give e.g. '{{shortcut: projection}}'")
    rows = evaluate_checkpoints(options.what, options.teacher, folder, preprocess, arguments, options.workers)
    print(table_of(rows))


def profile(options: argparse.Namespace) -> None:
    """Count parameters and operations of a run's network and time it on this machine."""
    from distillery.evaluation.profile import profile_run
    from distillery.experiment import load_experiment

    _limit_threads(options.threads)
    facts = profile_run(load_experiment(options.config), options.run, options.results)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))


def taps(options: argparse.Namespace) -> None:
    """Show where the features of a teacher and a student would be taken, and how they pair up."""
    from distillery.models import create_model
    from distillery.models.taps import describe_pair, plan_taps

    plans = [plan_taps(create_model(name, 1000), options.size, name) for name in (options.teacher, options.student)]
    print(describe_pair(*plans))


def tabulate(options: argparse.Namespace) -> None:
    """Write the tables of an experiment, or one of them alone."""
    from distillery.experiment import load_experiment
    from distillery.reporting.tables import tabulate_experiment, tabulate_table

    experiment = load_experiment(options.config)
    published = experiment.path.parent / "published" / f"{experiment.name}.csv"
    if options.table is None:
        tabulate_experiment(experiment, options.results, published, partial=options.partial)
    else:
        tabulate_table(experiment, options.table, options.results, published, partial=options.partial)


def plot(options: argparse.Namespace) -> None:
    """Draw the figures of an experiment."""
    from distillery.experiment import load_experiment
    from distillery.reporting.figures import plot_experiment

    experiment = load_experiment(options.config)
    published = experiment.path.parent / "published" / f"{experiment.name}.csv"
    plot_experiment(experiment, options.results, published, partial=options.partial)


def schema(options: argparse.Namespace) -> None:
    """Write the JSON Schemas that editors check the YAML files with."""
    from distillery.experiment.json_schema import write_schemas

    write_schemas(options.output)


def _limit_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distillery",
        description="Image-classification knowledge distillation that others can rerun and trust.",
        epilog="Each stage of the workflow is one command; `snakemake results/tables/digits.md` runs them all.",
    )
    parser.add_argument("--version", action="version", version=f"distillery {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add = _command(commands, "check", check)
    add.add_argument("config", type=Path, metavar="CONFIG", help="an experiment file, e.g. config/digits.yaml")

    add = _command(commands, "download", download)
    add.add_argument("dataset", metavar="DATASET", help="a line of datasets.yaml")
    add.add_argument("--config-dir", type=Path, default=Path("config"), help="holds datasets.yaml [%(default)s]")

    add = _command(commands, "prepare", prepare)
    add.add_argument("dataset", metavar="DATASET", help="a line of datasets.yaml")
    add.add_argument("--config-dir", type=Path, default=Path("config"), help="holds datasets.yaml [%(default)s]")
    _results(add)
    _workers(add)

    add = _command(commands, "data", data)
    add.add_argument("dataset", metavar="DATASET", help="a prepared data set")
    add.add_argument("--recipe", help="whose augmentation to show [the one that most runs on it train by]")
    add.add_argument("--output", type=Path, metavar="PNG", help="[results/figures/datasets/DATASET.png]")
    add.add_argument(
        "--config-dir", type=Path, default=Path("config"), help="holds experiments and recipes [%(default)s]"
    )
    _results(add)

    add = _command(commands, "train", train)
    _run(add)
    _seed(add)
    _results(add)
    _workers(add)
    _threads(add)
    add.add_argument(
        "--device-batch", type=_positive, help="most images on one device at once; the rest is accumulated"
    )
    add.add_argument(
        "--loader",
        choices=("torch", "dali"),
        default="torch",
        help="what prepares training images; dali needs NVIDIA DALI [%(default)s]",
    )
    add.add_argument("--checkpoint-seconds", type=float, default=60.0, help="time between checkpoints [%(default)s]")
    add.add_argument("--expect-digest", help="refuse to train if the run's digest is another")
    add.add_argument(
        "--requeue", action="store_true", help="have Slurm start this job again if it is stopped before the run's end"
    )

    add = _command(commands, "evaluate", evaluate)
    add.usage = (
        "%(prog)s [options] CONFIG RUN\n"
        "       %(prog)s [options] --dataset NAME [--teacher CHECKPOINT] CHECKPOINT [CHECKPOINT ...]"
    )
    add.add_argument(
        "what",
        nargs="+",
        metavar="CHECKPOINT",
        help="MODEL=WEIGHTS, with a file, torchvision:TAG or timm:TAG as weights; or the folder of a finished run; "
        "without --dataset: an experiment file and a line of its runs",
    )
    add.add_argument("--dataset", metavar="NAME", help="a prepared data set, to measure checkpoints on")
    add.add_argument("--teacher", metavar="CHECKPOINT", help="measured first; the others' agreement with it is told")
    add.add_argument("--size", type=_positive, help="side of the images, for weights that do not say it")
    add.add_argument("--resize", type=_positive, help="short side before the centre crop [the size]")
    add.add_argument("--interpolation", choices=("nearest", "bilinear", "bicubic"), help="of the resizing [bilinear]")
    add.add_argument("--normalize", choices=("dataset", "imagenet", "none"), help="by which statistics [dataset]")
    add.add_argument("--model-args", default="{}", metavar="YAML", help="further arguments of the models")
    _seed(add)
    _results(add)
    _workers(add)
    _threads(add)

    add = _command(commands, "profile", profile)
    _run(add)
    _results(add)
    _threads(add)

    add = _command(commands, "taps", taps)
    add.add_argument("teacher", metavar="TEACHER", help="a model's name, e.g. resnet50")
    add.add_argument("student", metavar="STUDENT", help="a model's name, e.g. mobilenet_v2")
    add.add_argument("--size", type=_positive, default=224, help="side of the images in pixels [%(default)s]")

    for name, function in (("tabulate", tabulate), ("plot", plot)):
        add = _command(commands, name, function)
        add.add_argument("config", type=Path, metavar="CONFIG", help="an experiment file, e.g. config/digits.yaml")
        if name == "tabulate":
            add.add_argument("table", nargs="?", metavar="TABLE", help="only this table of the experiment [all]")
        add.add_argument("--partial", action="store_true", help="mark what is missing instead of refusing it")
        _results(add)

    add = _command(commands, "schema", schema)
    add.add_argument("--output", type=Path, default=Path("workflow/schemas"), help="folder to write to [%(default)s]")
    return parser


def _command(commands, name: str, function) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]  # noqa: ANN001
    summary = function.__doc__
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(command=function)
    return parser


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="an experiment file, e.g. config/digits.yaml")
    parser.add_argument("run", metavar="RUN", help="a line under `runs:`, e.g. resnet8-kd")


def _seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, help="one of the run's seeds [the first]")


def _results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder [%(default)s]")


def _workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_natural, default=2, help="processes that read images [%(default)s]")


def _threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=_positive, help="CPU threads for the network [torch's choice]")


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is not valid; give 0 or more")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not valid; give 1 or more")
    return number
