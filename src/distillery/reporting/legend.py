"""The words around the tables of an experiment: what it is about, and how to read it."""

from collections.abc import Iterable, Mapping, Sequence

from distillery.data.manifest import Manifest
from distillery.experiment import Experiment
from distillery.experiment.schema.columns import COLUMNS
from distillery.reporting.content import Content, Entry
from distillery.reporting.markup import enumerated, escape_markdown
from distillery.reporting.measurements import Measured, needed_files

NOT_RUN = "not run"
SELECTIONS = {"last": "last epoch", "best": "best epoch", "holdout": "best held-out", "imported": "imported"}
_SELECTION_RULES = {
    "last": "*last epoch*: the weights after the last epoch, whatever they score.",
    "best": "*best epoch*: the weights of the epoch with the highest validation top-1, scored on the images they were "
    "chosen by, which flatters them.",
    "holdout": "*best held-out*: the weights of the epoch with the highest top-1 on images held out from training; the "
    "scores are taken on other images.",
    "imported": "*imported*: weights that were trained elsewhere.",
}
_LABELS = (
    "training images whose label a run may use, {}; *+ unlabelled*: it learns from its teacher on the other images too."
)
_FINDING_RULES = {
    "reproduced": "*reproduced*: our mean is at least as good as the published number, by the digits of the latter.",
    "within noise": "*within noise*: our mean is worse, but not significantly, by a one-sided t-test at 5 %.",
    "not reproduced": "*not reproduced*: our mean is worse than that.",
    "not comparable": "*not comparable*: source and experiment select their epoch by different rules, or time on "
    "different machines.",
    "not run": "*not run*: published, but not measured here.",
}
_NOISE = (
    "Noise is the spread over our n runs and over the published ones (one run where the source does not say). A spread "
    "known on one side stands for both. Where none is known, accuracies get that of independent images, "
    "√(p (1 − p) / images), which is more than networks really differ by, and other measures get none."
)


def introduce(
    experiment: Experiment, manifest: Manifest | None, runs: Mapping[str, Measured], tables: Iterable[str] | None = None
) -> str:
    """One paragraph: the data set, its images and classes, the seeds; and what some tables, or all, lack of their runs.

    ``manifest`` is None if a partial experiment is made before its data set.
    """
    seeds = experiment.config.seeds
    text = (
        f"{_describe(experiment.config.dataset, manifest)} "
        f"Seed{'s' * (len(seeds) > 1)} {enumerated(map(str, seeds))}, unless n says otherwise."
    )
    if manifest is not None and manifest.duplicates.across_splits:
        overlap = len({validation for _, validation in manifest.duplicates.across_splits})
        which = "image is" if overlap == 1 else "images are"
        text += f" **{overlap:,} validation {which} also among the training images.**"
    needed = needed_files(experiment, tables)
    complete = [run for run, files in needed.items() if runs[run].complete(files, len(experiment.seeds(run)))]
    if len(complete) < len(needed):
        text += f" **A partial experiment: {len(complete)} of {len(needed)} runs are complete.**"
    return f"{text}\n"


def _describe(dataset: str, manifest: Manifest | None) -> str:
    name = f"Data set {escape_markdown(dataset)}"
    if manifest is None:
        return f"{name}, not prepared yet."
    train, val = manifest.splits.get("train"), manifest.splits["val"].images
    training = "" if train is None else f"{train.images:,} training images, "
    others = manifest.splits.get("unlabelled")
    training += "" if others is None else f"{others.images:,} more without labels, "
    held = manifest.splits.get("holdout")
    chosen = "" if held is None else f"{held.images:,} images held out from training to choose epochs by, "
    return (
        f"{name}: {len(manifest.classes):,} classes, {training}{chosen}{'and ' * bool(training)}{val:,} "
        "validation images, on which every score is taken."
    )


def legend(contents: Sequence[Content]) -> str:
    """How to read these tables; explains what occurs in them and nothing else. Empty if nothing needs it."""
    entries = [entry for content in contents for entry in content.entries.values()]
    items = [
        *_measures(contents),
        *_values(entries),
        *_gains(entries),
        *_selections(contents),
        *_verdicts(entries),
        *_sources(entries),
    ]
    return "\n".join(["## How to read this", "", *items, ""]) if items else ""


def _measures(contents: Sequence[Content]) -> list[str]:
    shown = dict.fromkeys(metric for content in contents for metric in content.table.columns)
    meanings = [f"  - *{COLUMNS[metric].heading}*: {COLUMNS[metric].meaning}." for metric in shown]
    if chosen := {how for content in contents for how in content.chosen}:
        meanings.insert(0, f"  - *Labels*: {_LABELS.format(' or '.join(sorted(chosen)))}")
    return ["- **Columns.**", *meanings] if meanings else []


def _values(entries: Sequence[Entry]) -> list[str]:
    sentences = []
    if any(entry.summary is not None and entry.summary.std is not None for entry in entries):
        sentences.append("Mean ± sample standard deviation over n seeds; a value without ± is of one network.")
    if any(entry.best and entry.gain is None for entry in entries):
        sentences.append(
            "The best value of a column is **bold**; networks that teach others in the table do not compete."
        )
    if any(entry.gap for entry in entries):
        sentences.append(f"*{NOT_RUN}*: not measured yet, or not by the present configuration.")
    return [f"- **Values.** {' '.join(sentences)}"] if sentences else []


def _gains(entries: Sequence[Entry]) -> list[str]:
    gains = [entry.gain for entry in entries if entry.gain is not None]
    if not gains:
        return []
    rules = [
        "The 95 % interval and the two-sided p are of the paired t-test over the seeds that both runs have; "
        "p is corrected by Holm's method for the rows of the table. **Bold** is a gain with p < 0.05. Networks that "
        "teach others in the table are not compared."
    ]
    if any(gain.n == 1 for gain in gains):
        rules.append(
            "A single seed proves nothing. The seeds that would show a gain of that size are those with which the "
            "test, uncorrected, finds it at 5 % in 80 % of all cases; how much differences spread from seed to seed, "
            "those of the other rows say, and where there are none, nothing does (*needs seeds*)."
        )
    if any(gain.n > 1 and gain.p is None for gain in gains):
        rules.append("A difference that is the same for all seeds has no spread, and so neither interval nor p.")
    if any(gain.p == 1 and gain.std == 0 for gain in gains):
        rules.append("Where there is no difference at all, p is 1.")
    return ["- **Gain.** Does the run beat the baseline?", *(f"  - {rule}" for rule in rules)]


def _selections(contents: Sequence[Content]) -> list[str]:
    used = {
        content.runs[run].selection
        for content in contents
        if content.scored
        for run in content.table.runs()
        if run in content.runs
    }
    rules = [rule for selection, rule in _SELECTION_RULES.items() if selection in used]
    return ["- **Selection.** Which weights the scores are of.", *(f"  - {rule}" for rule in rules)] if rules else []


def _verdicts(entries: Sequence[Entry]) -> list[str]:
    judged = [entry for entry in entries if entry.verdict is not None]
    if not judged:
        return []
    # The scale is understood as a whole; the exceptions only where they occur.
    exceptions = {"not comparable", "not run"} - {entry.verdict.finding for entry in judged if entry.verdict}
    rules = [rule for finding, rule in _FINDING_RULES.items() if finding not in exceptions]
    rules.append(_NOISE)
    rules += dict.fromkeys(rule for entry in judged if (rule := COLUMNS[entry.metric].verdict_rule))
    return ["- **Verdict.** Difference is ours minus published.", *(f"  - {rule}" for rule in rules)]


def _sources(entries: Sequence[Entry]) -> list[str]:
    """Where published numbers come from, each source once with the runs it is cited for."""
    cited: dict[str, dict[str, None]] = {}
    for entry in entries:
        if entry.published is not None:
            cited.setdefault(entry.published.source, {})[entry.run] = None
    lines = [
        f"  - {escape_markdown(source)}: {', '.join(map(escape_markdown, runs))}." for source, runs in cited.items()
    ]
    return ["- **Published numbers.**", *lines] if lines else []
