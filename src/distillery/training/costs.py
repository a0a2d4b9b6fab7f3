"""What an experiment will cost, before it is paid: jobs, hours and disk of what is not made yet, each with its source.

Times are those of finished runs, as far as there are any like it; the rest is said to be guessed. Disk is computed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from distillery.cluster.gpus import all_devices
from distillery.experiment import Experiment, RunSpec
from distillery.experiment.ledger import PROBING, PROFILING
from distillery.experiment.schema.columns import PROBED, PROBES
from distillery.paths import log_folder, profile_path, run_folder
from distillery.reporting.measurements import needed_files
from distillery.reporting.status import Line, read_status
from distillery.results import try_json
from distillery.training.banks import shown_bytes
from distillery.training.forecast import Forecast
from distillery.training.timings import (
    PASSES,
    Finished,
    Kind,
    Network,
    Shape,
    finished_runs,
    last_benchmark,
    recorded_shape,
    timed_networks,
)

# Multiplications with addition a second, where nothing was measured: of a GPU of the last years, and of one core.
ASSUMED: dict[Kind, float] = {"gpu": 4e12, "cpu": 1e10}
# Seconds of jobs of which none was measured; for a data set, images a second.
SECONDS = {"import": 10.0, "evaluate": 30.0, "probe": 30.0, "profile": 30.0, "table": 20.0, "figures": 20.0}
PREPARED_A_SECOND = 500
# What a run leaves beside its weights: history, records, TensorBoard.
BESIDE_WEIGHTS = 200_000


@dataclass(frozen=True)
class Task:
    """Jobs of one kind that are left, all alike: how many, the seconds of each, and what they are taken from."""

    job: str
    of: str
    left: int
    seconds: float
    kind: Kind
    lanes: int
    source: str
    guess: bool

    @property
    def hours(self) -> float:
        """Of all of them, on all their GPUs or threads."""
        return self.left * self.seconds * self.lanes / 3600


@dataclass
class Costs:
    """What is left of an experiment."""

    experiment: str
    tasks: list[Task] = field(default_factory=list)
    jobs: int = 0  # of the whole experiment, with those that are done
    chain_seconds: float = 0.0  # no number of machines makes it faster: a teacher, then its student
    disk_bytes: int = 0
    checkpoint_bytes: int = 0
    bank_bytes: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def left(self) -> int:
        """How many jobs are not done."""
        return sum(task.left for task in self.tasks)

    def hours(self, kind: Kind, *, guessed: bool = False) -> float:
        """The hours of a kind of device, or those of them that are guessed."""
        return sum(task.hours for task in self.tasks if task.kind == kind and (task.guess or not guessed))


def plan_costs(experiment: Experiment, results: Path, kind: Kind | None = None) -> Costs:
    """Estimate what is left of an experiment; ``kind`` is what it will run on, by default what the last run ran on."""
    finished = list(finished_runs(results))
    if kind is None:
        kind = finished[-1].kind if finished else "gpu" if all_devices() else "cpu"
    return _Planner(experiment, results, [run for run in finished if run.kind == kind], kind).plan()


# --- what is left ----------------------------------------------------------------------------------------------------


class _Planner:
    def __init__(self, experiment: Experiment, results: Path, finished: list[Finished], kind: Kind) -> None:
        self.experiment, self.results, self.finished, self.kind = experiment, results, finished, kind
        self.forecasts: dict[str, Forecast] = {}
        self.profiles = list(timed_networks(results))
        self.costs = Costs(experiment.name)
        self.lanes = finished[-1].lanes if finished else 1
        self.chains: dict[tuple[str, str], float] = {}  # of each run, how long it and its ancestors take

    def plan(self) -> Costs:
        """Go through all jobs in the workflow's order."""
        own = [(self.experiment, run) for run in self.experiment.config.runs]
        family = [pair for pair in self.experiment.family(self.experiment.config.runs) if pair not in own]
        for experiment in {each.name: each for each, _ in [*own, *family]}.values():
            self._prepare(experiment)
        lines: dict[tuple[str, str], list[Line]] = {}
        for experiment in {each.name: each for each, _ in [*own, *family]}.values():
            for line in read_status([experiment], self.results):
                lines.setdefault((experiment.name, line.run), []).append(line)
        for experiment, run in [*reversed(family), *own]:
            seeds = lines[experiment.name, run]
            # Of another experiment, its first seed alone is needed.
            self._train(experiment, run, seeds if experiment is self.experiment else seeds[:1])
        self._banks(lines)
        for _, run in own:
            unmeasured = [line for line in lines[self.experiment.name, run] if line.state != "done"]
            self._add("evaluate", run, len(unmeasured), *self._measured("evaluate", run, self.experiment.seeds(run)))
            self.costs.jobs += len(lines[self.experiment.name, run])
        for run, files in needed_files(self.experiment).items():
            if PROBES in files:
                probed = [self._probed(run, seed) for seed in self.experiment.seeds(run)]
                self.costs.jobs += len(probed)
                self._add("probe", run, probed.count(False), *self._measured("probe", run, self.experiment.seeds(run)))
            if "profile.json" in files:
                self._profile(run)
        if self.costs.left:
            for job in ("table", "figures"):
                self._add(job, "", 1, SECONDS[job], "guessed", kind="cpu")
        self.costs.jobs += 2
        self.costs.chain_seconds = max(self.chains.values(), default=0.0)
        return self.costs

    def _add(
        self, job: str, of: str, left: int, seconds: float, source: str, *, kind: Kind | None = None, lanes: int = 1
    ) -> None:
        if left:
            guess = source.startswith("guessed")
            self.costs.tasks.append(Task(job, of, left, seconds, kind or self.kind, lanes, source, guess))

    def _forecast(self, experiment: Experiment) -> Forecast:
        if experiment.name not in self.forecasts:
            self.forecasts[experiment.name] = Forecast(experiment, self.results, 0)
        return self.forecasts[experiment.name]

    def _prepare(self, experiment: Experiment) -> None:
        forecast, dataset = self._forecast(experiment), experiment.config.dataset
        self.costs.jobs += 1
        if forecast.manifest is not None or any(
            task.job == "prepare" and task.of == dataset for task in self.costs.tasks
        ):
            return
        if not forecast.images:
            self.costs.notes.append(
                f"{dataset} is not prepared and datasets.yaml does not say how many images it has: hours are unknown "
                f"until it is; make it first: snakemake --cores all results/datasets/{dataset}/manifest.json"
            )
        seconds = max(10.0, forecast.images / PREPARED_A_SECOND)
        self._add("prepare", dataset, 1, seconds, "guessed: 500 images a second", kind="cpu")
        self.costs.notes.append(f"the prepared images of {dataset} need about the disk of the raw ones")

    def _train(self, experiment: Experiment, run: str, lines: list[Line]) -> None:
        left = [line for line in lines if not _is_trained(line)]
        spec, forecast = experiment.spec(run), self._forecast(experiment)
        name = run if experiment is self.experiment else f"{experiment.name}/{run}"
        seconds = 0.0
        if spec.recipe is None:
            self._add("import", name, len(left), SECONDS["import"], "guessed", kind="cpu")
        else:
            seconds, source, lanes = self._training(experiment, spec, forecast.images)
            # What a stopped run has done is not done again.
            shares = [1 - (line.epoch or 0) / line.epochs if line.epochs and _goes_on(line) else 1 for line in left]
            if shares and min(shares) < 1:
                source += f"; {sum(share < 1 for share in shares)} of them have begun"
            mean = seconds * fmean(shares) if shares else 0.0
            self._add("train", name, len(left), mean, source, lanes=lanes)
            if left:
                self.costs.checkpoint_bytes = max(
                    self.costs.checkpoint_bytes, 2 * forecast.state(spec) + forecast.network(spec)
                )
        self.costs.jobs += len(lines)
        self.costs.disk_bytes += len(left) * (forecast.network(spec) + BESIDE_WEIGHTS)
        before = [self.chains.get((parent.name, other), 0.0) for parent, other in experiment.parents(run)]
        self.chains[experiment.name, run] = max(before, default=0.0) + (seconds if left else 0.0)

    def _training(self, experiment: Experiment, spec: RunSpec, images: int) -> tuple[float, str, int]:
        """Seconds of a training, where they are from, and the GPUs or threads that it takes."""
        ledger = {key: value for key, value in spec.ledger.items() if key != "seed"}
        shape = recorded_shape(spec.ledger, images)
        same = [run for run in self.finished if run.spec == ledger]
        if same:
            return fmean(run.seconds for run in same), f"measured: {_names(same)}", same[-1].lanes
        alike = [run for run in self.finished if run.shape.is_like(shape) and run.shape.seen]
        if alike and shape.seen:
            each = fmean(run.seconds / run.shape.seen for run in alike)
            return each * shape.seen, f"measured: {_names(alike)}, by epochs and images", alike[-1].lanes
        work = shape.work()
        if work is None or not shape.seen:
            return 0.0, "guessed: unknown, counted as 0", self.lanes
        rates = [(run, rate) for run in self.finished if (rate := run.rate()) is not None]
        of_model = [pair for pair in rates if pair[0].shape.student.model == spec.model]
        profiled = None if of_model else self._profiled(shape)
        if profiled is not None:
            return *profiled, self.lanes
        # Small networks use a fraction of a device: their speed tells nothing of large ones.
        near = of_model or [pair for pair in rates if 0.1 < shape.times(pair[0].shape) < 10]
        if near:
            rate = fmean(rate for _, rate in near)
            return work / rate, f"guessed by operations from {_names([run for run, _ in near])}", near[-1][0].lanes
        unit = "GPU" if self.kind == "gpu" else "core"
        rate = ASSUMED[self.kind]
        return work / rate, f"guessed: nothing was measured; {rate / 1e9:,.0f} G multiply-adds a second a {unit}", 1

    def _profiled(self, shape: Shape) -> tuple[float, str] | None:
        """Seconds of a training by the forward speed of profiles."""
        seconds, names = 0.0, []
        for network, passes in ((shape.student, PASSES), *((teacher, 1) for teacher in shape.teachers)):
            speed = next((found for found in self.profiles if found[0] == network and found[1] == self.kind), None)
            if speed is None:
                return None
            seconds += passes * shape.seen / speed[2]
            names.append(speed[3])
        return seconds, f"guessed from the forward speed in {', '.join(names)}"

    def _banks(self, lines: Mapping[tuple[str, str], list[Line]]) -> None:
        forecast = self._forecast(self.experiment)
        trained = {(line.run, line.seed) for each in lines.values() for line in each if _is_trained(line)}
        for bank in forecast.banks:
            if trained.issuperset(bank.members):
                continue
            recipe, teacher = bank.spec.recipe, bank.spec.teacher
            assert recipe is not None
            assert teacher is not None
            self.costs.jobs += 1
            self.costs.bank_bytes += bank.bytes
            own = teacher.prepared_for
            shown = recipe.preprocess if own is None or not recipe.trains_apart(own) else own
            network = Network.of(teacher.model, teacher.model_args, shown.size)
            rates = [rate for run in self.finished if (rate := run.rate()) is not None]
            rate = fmean(rates) if rates else ASSUMED[self.kind]
            source = "guessed by operations" + ("" if rates else ": nothing was measured")
            seconds = bank.answered * (network.macs() or 0.0) / rate
            self._add("answer", f"{bank.teacher}, bank {bank.address[:8]}", 1, seconds, source)

    def _probed(self, run: str, seed: int) -> bool:
        found = try_json(run_folder(self.results, self.experiment.name, run, seed) / PROBES) or {}
        made = (found.get("digest"), found.get("probing")) == (self.experiment.spec(run, seed).digest, PROBING)
        return made and [name for name in PROBED if name in found] == self.experiment.probes(run)

    def _profile(self, run: str) -> None:
        self.costs.jobs += 1
        found = try_json(profile_path(self.results, self.experiment.name, run)) or {}
        if (found.get("digest"), found.get("profiling")) != (self.experiment.spec(run).digest, PROFILING):
            self._add("profile", run, 1, *self._measured("profile", run, [0]))

    def _measured(self, job: str, run: str, seeds: Iterable[int]) -> tuple[float, str]:
        """Seconds of a short job: of the same run's, else of the experiment's, else guessed."""
        mine = [self._benchmark(job, run, seed) for seed in seeds]
        found = [seconds for seconds in mine if seconds is not None]
        if found:
            return fmean(found), "measured"
        others = [self._benchmark(job, other, seed) for other, seed in self.experiment.members()]
        found = [seconds for seconds in others if seconds is not None]
        if found:
            return fmean(found), "measured: the other runs"
        logs = log_folder(self.results, "*", "*", 0)
        pattern = str((logs.parent if job == "profile" else logs.with_name("seed*")).relative_to(self.results.parent))
        elsewhere = (last_benchmark(path / job) for path in self.results.parent.glob(pattern))
        found = [seconds for seconds in elsewhere if seconds is not None]
        return (fmean(found), "guessed from other experiments") if found else (SECONDS[job], "guessed")

    def _benchmark(self, job: str, run: str, seed: int) -> float | None:
        folder = log_folder(self.results, self.experiment.name, run, seed)
        return last_benchmark((folder.parent if job == "profile" else folder) / job)


def _is_trained(line: Line) -> bool:
    """Whether its weights are those of the present configuration."""
    measured_otherwise = line.state == "stale" and line.note.startswith(("metrics.json", PROBES, "profile.json"))
    not_measured = line.state == "failed" and line.note.startswith("not measured")
    return line.state in ("done", "trained") or measured_otherwise or not_measured


def _goes_on(line: Line) -> bool:
    return line.state in ("running", "stopped", "queued")


def _names(runs: list[Finished]) -> str:
    names = [run.name for run in runs]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


# --- showing it ------------------------------------------------------------------------------------------------------


def describe_costs(costs: Costs) -> str:
    """What is left, a line a run and kind of job, and the sum before it."""
    from tabulate import tabulate

    rows = [
        (
            task.job,
            task.of,
            task.left,
            _clock(task.seconds),
            f"{_clock(3600 * task.hours)} {_unit(task.kind)}",
            task.source,
        )
        for task in costs.tasks
    ]
    lines = [summary(costs)]
    if rows:
        lines += ["", tabulate(rows, headers=("job", "of", "left", "each", "in all", "from"), tablefmt="github")]
        lines += [
            "",
            f"However many machines there are, it takes {_clock(costs.chain_seconds)}: runs after their teachers.",
        ]
    return "\n".join([*lines, *(f"note: {note}" for note in costs.notes)])


def summary(costs: Costs) -> str:
    """One line: jobs, hours, disk."""
    if not costs.left:
        return f"{costs.experiment}: all {costs.jobs} jobs are done"
    kinds: tuple[Kind, ...] = ("gpu", "cpu")
    hours = [
        f"{_round(costs.hours(kind))} {_unit(kind)}-hours ({_share(costs, kind)})"
        for kind in kinds
        if costs.hours(kind)
    ]
    disk = f"{shown_bytes(costs.disk_bytes)} of disk, up to {shown_bytes(costs.checkpoint_bytes)} of checkpoints a run"
    banks = f", {shown_bytes(costs.bank_bytes)} of banks for a while" if costs.bank_bytes else ""
    return (
        f"{costs.experiment}: {costs.left} of {costs.jobs} jobs are left, about {' and '.join(hours)}; {disk} while it "
        f"trains{banks}"
    )


def _share(costs: Costs, kind: Kind) -> str:
    guessed = costs.hours(kind, guessed=True) / costs.hours(kind)
    return "measured" if guessed < 0.005 else "guessed" if guessed > 0.995 else f"{100 * guessed:.0f} % of it guessed"


def costs_data(costs: Costs) -> dict[str, Any]:
    """The same as plain data."""
    hours = {f"{kind}_hours": round(costs.hours(kind), 4) for kind in ("gpu", "cpu")}
    guessed = {f"{kind}_hours_guessed": round(costs.hours(kind, guessed=True), 4) for kind in ("gpu", "cpu")}
    tasks = [asdict(task) | {"hours": round(task.hours, 4)} for task in costs.tasks]
    return asdict(costs) | {"left": costs.left, **hours, **guessed, "tasks": tasks}


def _unit(kind: Kind) -> str:
    return {"gpu": "GPU", "cpu": "CPU"}[kind]


def _round(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
