"""The model card: what a network is, how good, whether that is what was published, and how it came to be."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from distillery.errors import UserError
from distillery.evaluation.restore import FinishedRun
from distillery.experiment import Experiment, load_experiment
from distillery.experiment.schema.columns import COLUMNS, METRICS
from distillery.export.formats import is_timm
from distillery.models.registry import bare_name, library_of
from distillery.paths import run_folder
from distillery.reporting.content import gather
from distillery.reporting.measurements import read_measurements, read_run
from distillery.reporting.published import load_published
from distillery.reporting.run_cards import written
from distillery.reporting.sheets import describe_gain
from distillery.reporting.verdict import judge
from distillery.results import read_json, record_sha256

SHOWN = ("top1", "top5", "nll", "ece", "agreement")
MOST_CLASSES = 20


class RunName(NamedTuple):
    """Where a run stands."""

    experiment: str
    run: str
    seed: int


def write_card(finished: FinishedRun, name: RunName, to: str, config_dir: Path, results: Path) -> str:
    """README.md of an exported run, with the header that the Hugging Face hub reads.

    Raises:
        UserError: metrics.json is damaged.
    """
    record = finished.record
    metrics = measured_of(finished)
    shown = {key: metrics[key] for key in SHOWN if isinstance(metrics.get(key), (int, float))}
    title = f"{name.experiment}/{name.run}"
    parts = [
        f"---\n{_front(finished, title, shown)}---\n",
        f"# {title}\n",
        _introduction(finished, name),
        "## Results\n",
        _results(shown, metrics, record["dataset"]),
        _verdicts(finished, name, config_dir, results),
        "## Images and classes\n",
        _images(finished, to),
        "## Use\n",
        f"```python\n{_usage(finished, to)}```\n",
        "## How it was made\n",
        _making(finished, name),
    ]
    return "\n".join(parts)


def measured_of(finished: FinishedRun) -> dict[str, Any]:
    """metrics.json beside a run, if it is about these weights; else nothing.

    Raises:
        UserError: it is damaged.
    """
    path = finished.weights.with_name(METRICS)
    if not path.is_file():
        return {}
    metrics = read_json(path, "distillery evaluate")
    same = metrics.get("record_sha256") in (None, record_sha256(finished.record))
    return metrics if same and metrics.get("weights_sha256") in (None, finished.weights_sha256) else {}


def _front(finished: FinishedRun, title: str, shown: dict[str, float]) -> str:
    dataset = finished.record["dataset"]
    front: dict[str, Any] = {
        "library_name": "timm" if is_timm(finished) else "distillery",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "knowledge-distillation", "distillery"],
    }
    if "top1" in shown:
        front["metrics"] = ["accuracy"]
        front["model-index"] = [
            {
                "name": title,
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": dataset, "type": dataset},
                        "metrics": [{"type": "accuracy", "value": round(shown["top1"], 2), "name": "top-1 (%)"}],
                    }
                ],
            }
        ]
    text: str = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return text


def _introduction(finished: FinishedRun, name: RunName) -> str:
    record, spec = finished.record, finished.record["spec"]
    made = "imported" if spec.get("recipe") is None else "trained"
    sentences = [f"`{spec['model']}` for {record['classes']} classes of `{record['dataset']}`, {made} by Distillery."]
    teacher = spec.get("teacher")
    if teacher is not None:
        scores = record.get("teacher", {})
        top1 = f", {scores['top1']:.2f} % top-1" if "top1" in scores else ""
        run = f"`{name.experiment}/{scores['run']}`, " if "run" in scores else ""
        sentences.append(f"Its teacher is {run}`{teacher['model']}`{top1}.")
    if "head" in record:
        sentences.append(f"Its last layer is the head that `{record['head']['term']}` deploys with the student.")
    return " ".join(sentences) + "\n"


def _results(shown: dict[str, float], metrics: dict[str, Any], dataset: str) -> str:
    if not shown:
        return "Not evaluated.\n"
    rows = [f"| {COLUMNS[key].heading} | {COLUMNS[key].show(value)} |" for key, value in shown.items()]
    images = f"{metrics['images']:,} " if isinstance(metrics.get("images"), int) else ""
    return "\n".join([f"On the {images}validation images of `{dataset}`:\n", "| | |", "|---|---|", *rows, ""])


def _verdicts(finished: FinishedRun, name: RunName, config_dir: Path, results: Path) -> str:
    """A line for each published number and each baseline: the mean over the seeds that there are, and the verdict."""
    page = config_dir / f"{name.experiment}.yaml"
    unknown = f"Not compared with published numbers: {page} does not stand for this run."
    try:
        experiment = load_experiment(page) if page.is_file() else None
        if experiment is None or name.run not in experiment.config.runs:
            return f"{unknown}\n"
        if experiment.spec(name.run, name.seed).digest != finished.record["digest"]:
            return f"{unknown}\n"
        numbers = [number for number in load_published(experiment.published) if number.run == name.run]
        numbers = [number for number in numbers if COLUMNS[number.metric].file == METRICS]
        seeds = [
            seed
            for seed in experiment.seeds(name.run)
            if (run_folder(results, name.experiment, name.run, seed) / METRICS).is_file()
        ]
        measured = read_run(experiment, name.run, results, {number.metric for number in numbers}, seeds)
        lines = [] if numbers else ["- No published number is known for it."]
        gains = _gains(experiment, name.run, results)
    except UserError as error:
        return f"Not compared with published numbers: {error}\n"
    for number in numbers:
        column = COLUMNS[number.metric]
        summary = column.value(measured, None, number) if measured.metrics else None
        verdict = judge(column, summary, measured.selection, measured.images, number)
        ours = "" if summary is None else f"{column.show(summary.mean)} over {summary.n} seed{'s' * (summary.n > 1)}, "
        table = f", table {number.table}" if number.table else ""
        lines.append(
            f"- {column.heading}: {ours}published {number.value} ({number.source}{table}): **{verdict.finding}**"
        )
    return "\n".join([*lines, *gains, ""])


def _gains(experiment: Experiment, run: str, results: Path) -> list[str]:
    """A line for each baseline that a table compares a run with: the gain, and whether it is one."""
    lines = []
    for name, table in experiment.config.tables.items():
        if table.baseline is None or run not in table.runs():
            continue
        content = gather(experiment, name, table, read_measurements(experiment, results, [name], partial=True), {})
        for metric in table.paired:
            gain, column = content.entries[run, metric].gain, COLUMNS[metric]
            if gain is not None:
                finding = ("better" if gain.mean > 0 else "worse") if gain.shown else "no claim"
                said = f"{describe_gain(gain, column)}: **{finding}**"
                lines.append(f"- {column.heading} over `{table.baseline}`: {said}")
    return list(dict.fromkeys(lines))


def _images(finished: FinishedRun, to: str) -> str:
    preprocess, statistics, record = finished.preprocess, finished.record["statistics"], finished.record
    rule = "" if preprocess.rule == "torchvision" else f" by the rule `{preprocess.rule}`, which other libraries lack"
    inside = (
        "the exported network does it itself, for images in [0, 1]"
        if to in ("onnx", "torch.export")
        else ("images in [0, 1] first")
    )
    lines = [
        f"- RGB, short side resized to {preprocess.resize or preprocess.size} pixels ({preprocess.interpolation}), "
        f"centre square of {preprocess.size}{rule}",
        f"- mean {_numbers(statistics['mean'])}, deviation {_numbers(statistics['std'])}: {inside}",
    ]
    names = record.get("class_names")
    if names:
        more = "" if len(names) <= MOST_CLASSES else f", ... ({len(names)} in all, in config.json)"
        lines.append(f"- classes, in order: {', '.join(names[:MOST_CLASSES])}{more}")
    return "\n".join([*lines, ""])


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _usage(finished: FinishedRun, to: str) -> str:
    record, spec, size = finished.record, finished.record["spec"], finished.preprocess.size
    if to == "onnx":
        return (
            'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n'
            f'(logits,) = session.run(["logits"], {{"images": images}})  # float32 (N, 3, {size}, {size}) in [0, 1]\n'
        )
    if to == "torch.export":
        return (
            'import torch\n\nnetwork = torch.export.load("model.pt2").module()\n'
            f"logits = network(images)  # float32 (N, 3, {size}, {size}) in [0, 1]\n"
        )
    if to in ("timm", "hf") and is_timm(finished):
        return (
            'import timm\n\nnetwork = timm.create_model("local-dir:.", pretrained=True).eval()  # or hf-hub:USER/NAME\n'
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))\n"
        )
    library, arguments = (
        library_of(spec["model"]),
        "".join(f", {k}={v!r}" for k, v in spec.get("model_args", {}).items()),
    )
    load = 'network.load_state_dict(load_file("model.safetensors"))\nnetwork.eval()\n'
    if library == "torchvision" and "head" not in record:
        build = f"network = get_model({bare_name(spec['model'])!r}, num_classes={record['classes']}{arguments})\n"
        return f"from safetensors.torch import load_file\nfrom torchvision.models import get_model\n\n{build}{load}"
    build = f"network = create_model({spec['model']!r}, {record['classes']}{arguments})\n"
    imports = "from distillery import create_model\n"
    if "head" in record:
        imports += "from distillery.models.composite import with_head\n"
        build += f"network = with_head(network, {{'head': {record['head']}}}, {size}, {spec['model']!r})\n"
    return f"{imports}from safetensors.torch import load_file\n\n{build}{load}"


def _making(finished: FinishedRun, name: RunName) -> str:
    record = finished.record
    spec = record["spec"]
    sessions = record.get("sessions") or [record]
    origin = sessions[-1].get("provenance", {})
    git, packages = origin.get("git"), origin.get("packages", {})
    epoch = f", epoch {record['epoch']} ({record['selection']})" if record.get("epoch") is not None else ""
    lines = [
        f"- seed {name.seed}{epoch}",
        f"- spec digest `{record['digest']}`, data digest `{record['manifest_digest'][:16]}`",
        f"- weights SHA-256 `{finished.weights_sha256}`",
    ]
    if git:
        lines.append(f"- commit `{git['commit']}`{' with uncommitted changes' if git.get('dirty') else ''}")
    versions = [f"{package} {version}" for package, version in packages.items() if version]
    if versions:
        lines.append(f"- {', '.join(versions)}")
    kept = {key: written(spec[key]) for key in ("objective", "recipe") if spec.get(key) is not None}
    if kept:
        lines += ["", "```yaml", yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).rstrip(), "```"]
    return "\n".join([*lines, ""])
