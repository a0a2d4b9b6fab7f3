"""The columns a table may have: where each number comes from, how it is printed, and which way is better.

An entry of ``COLUMNS`` is all that a column is: the configuration, the tables and figures, their legend, the published
numbers and the files that a table needs follow from it.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Literal, Protocol

Better = Literal["higher", "lower"]
File = Literal["metrics.json", "profile.json", "probes.json"]

METRICS: File = "metrics.json"
PROFILE: File = "profile.json"
PROBES: File = "probes.json"  # made only where a table asks for it


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (n - 1 in the denominator; None for a single value) and number of values."""

    mean: float
    std: float | None
    n: int


def summarize(values: Sequence[float]) -> Summary:
    """Sum up the values of a run's seeds, of which there is at least one.

    Sums are exact before they are rounded, so the order of the seeds changes no bit.
    """
    if len(values) == 1:
        return Summary(values[0], None, 1)
    return Summary(statistics.fmean(values), statistics.stdev(values), len(values))


class Measurements(Protocol):
    """What was measured of a run."""

    def values(self, file: File, key: str) -> list[float]:
        """What a file holds under a key: a value a seed, or the profile's one; none where it is null or not read."""


class Improvement(Protocol):
    """A published number that stands beside another one of its run."""

    @property
    def best_before(self) -> Decimal:
        """The other one less this one."""


# From a run, its teacher and the published number that the column has for it to the column's value.
Compute = Callable[[Measurements, Measurements | None, Improvement | None], Summary | None]


@dataclass(frozen=True)
class Column:
    """One measure of a network.

    ``better`` is None for what the experimenter chose with the architecture: parameters, operations and size are not
    won or lost by training, so nothing of them is set in bold, and a published count is matched, not beaten.
    """

    heading: str
    key: str  # what it is taken from, in the file
    meaning: str
    file: File
    better: Better | None
    decimals: int | None = None  # None: three digits and a prefix, as in 25.6 M
    unit: str = ""
    compute: Compute | None = None  # None: the file's value as it stands
    bounds: tuple[float, float] = (0, math.inf)  # of published and of measured values
    optional: bool = False  # the file may hold null, or be older than the key
    share: bool = False  # a percentage of the validation images
    complement: str | None = None  # the column that is 100 minus this one
    machine: tuple[str, str] | None = None  # a time: the profile's keys for the device it was taken on, and its threads
    needs_teacher: bool = False  # compares a run with its teacher; what it computes, from the teacher's file too
    beside: str | None = None  # the column whose published number must stand beside its own, and by which it is judged
    verdict_rule: str = ""  # what the legend says of its verdicts
    axis: Literal["accuracy", "speed"] | None = None  # of a Pareto front
    paired: bool = False  # a difference to the table's baseline, seed by seed

    @property
    def timed(self) -> bool:
        """Whether it is measured on one machine, and different each time."""
        return self.machine is not None

    @property
    def teacher_file(self) -> File | None:
        """What of the teacher's it is computed from."""
        return self.file if self.needs_teacher and self.compute is not None else None

    def value(
        self, run: Measurements, teacher: Measurements | None = None, published: Improvement | None = None
    ) -> Summary | None:
        """The column's value of a run over its seeds; None where it has none, as an agreement without a teacher."""
        if self.compute is not None:
            return self.compute(run, teacher, published)
        values = run.values(self.file, self.key)
        return summarize(values) if values else None

    def show(self, value: float) -> str:
        """Print a value as the tables do."""
        if self.decimals is None:
            return with_prefix(value, self.unit)
        # A loss that prints as zero, of gains, has no sign.
        return f"{round(value, self.decimals) + 0.0:,.{self.decimals}f}"

    def show_difference(self, value: float) -> str:
        """Print ours minus published, with its sign; what prints as zero has none."""
        if self.decimals is None:
            text = with_prefix(abs(value), self.unit)
            return text if value == 0 else f"{'-' if value < 0 else '+'}{text}"
        text = f"{value:+,.{self.decimals}f}"
        return text[1:] if float(text.replace(",", "")) == 0 else text


def with_prefix(value: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: 272474 -> 272 k, 1.73e6 -> 1.73 M; below a thousand the number itself."""
    value = float(f"{value:.2e}")
    if abs(value) < 1000:
        return f"{value:.0f} {unit}".rstrip()
    magnitude = math.floor(math.log10(abs(value)))
    power = min(magnitude // 3, 5)
    return f"{value / 1000**power:.{max(0, 2 - magnitude + 3 * power)}f} {' kMGTP'[power]}{unit}"


def _error(key: str) -> Compute:
    def compute(run: Measurements, teacher: Measurements | None, published: Improvement | None) -> Summary | None:
        values = run.values(METRICS, key)
        return summarize([100 - value for value in values]) if values else None

    return compute


def _gain_over_published(
    run: Measurements, teacher: Measurements | None, published: Improvement | None
) -> Summary | None:
    top1 = COLUMNS["top1"].value(run)
    if top1 is None or published is None:
        return None
    # In decimals, 81.04 - 80.4 is 0.64.
    return replace(top1, mean=float(Decimal(str(top1.mean)) - published.best_before))


def _size_ratio(run: Measurements, teacher: Measurements | None, published: Improvement | None) -> Summary | None:
    own, others = run.values(PROFILE, "size_bytes"), teacher.values(PROFILE, "size_bytes") if teacher else []
    return summarize([100 * own[0] / others[0]]) if own and others else None


_share = partial(Column, file=METRICS, better="higher", decimals=2, share=True, bounds=(0, 100))
_exact = "Parameters, operations and size are *reproduced* if they equal the published ones by the digits printed."
_count = partial(Column, file=PROFILE, better=None, verdict_rule=_exact)
_time = partial(Column, file=PROFILE, machine=("device", "threads"))
_throughput = partial(_time, meaning="images a second in large batches", better="higher", decimals=0, axis="speed")

COLUMNS: dict[str, Column] = {
    "top1": _share(
        "Top-1 (%)", "top1", "share of images whose most probable class is right", complement="error1", axis="accuracy"
    ),
    "top5": _share(
        "Top-5 (%)", "top5", "share of images whose class is among the five most probable", complement="error5"
    ),
    "error1": _share(
        "Top-1 error (%)",
        "top1",
        "share of images whose most probable class is wrong",
        better="lower",
        compute=_error("top1"),
        complement="top1",
        axis="accuracy",
    ),
    "error5": _share(
        "Top-5 error (%)",
        "top5",
        "share of images whose class is not among the five most probable",
        better="lower",
        compute=_error("top5"),
        complement="top5",
    ),
    "gain": Column(
        "Gain (points)",
        "top1",
        "top-1 less that of the baseline, in percentage points: the mean difference over the seeds that both have",
        METRICS,
        "higher",
        decimals=2,
        bounds=(0, 100),
        paired=True,
    ),
    "gain_over_published": Column(
        "Gain over published (points)",
        "top1",
        "top-1 less the best that was published for the network before, in percentage points",
        METRICS,
        "higher",
        decimals=2,
        compute=_gain_over_published,
        bounds=(-100, 100),
        beside="top1",
        verdict_rule="A gain over published is judged as the top-1 behind it; what was best before is the published "
        "top-1 less that gain.",
    ),
    "nll": Column("NLL", "nll", "mean negative log-likelihood of the right class", METRICS, "lower", decimals=3),
    "ece": Column(
        "ECE (%)", "ece", "expected calibration error, 15 bins of confidence", METRICS, "lower", 2, bounds=(0, 100)
    ),
    "agreement": _share(
        "Agreement (%)",
        "agreement",
        "share of images that student and teacher give the same class",
        optional=True,
        needs_teacher=True,
    ),
    "knn": _share(
        "k-NN (%)",
        "knn",
        "share of images whose 20 nearest training images by the frozen embedding vote for their class",
        file=PROBES,
    ),
    "linear_probe": _share(
        "Linear probe (%)",
        "linear_probe",
        "share of images that a linear classifier on the frozen embedding gets right, fitted to all training labels",
        file=PROBES,
    ),
    "params": _count("Params", "params", "numbers that training adjusts"),
    "macs": _count("MACs", "macs", "multiplications with addition for one image"),
    "size": _count("Size", "size_bytes", "file of weights", unit="B"),
    "size_ratio": _count(
        "Size ratio (%)",
        "size_bytes",
        "file of weights, as a share of the teacher's",
        decimals=2,
        compute=_size_ratio,
        needs_teacher=True,
    ),
    "latency": _time("Latency (ms)", "latency_ms", "median time of one image alone", better="lower", decimals=2),
    "throughput": _throughput("Images/s", "throughput"),
    "gpu_throughput": _throughput("GPU images/s", "gpu_throughput", optional=True),
    "cpu_throughput": _throughput("CPU images/s", "cpu_throughput", optional=True, machine=("cpu", "cpu_threads")),
}
# What probes.json may hold; a probe measures those of them that tables show of its run.
PROBED = [name for name, column in COLUMNS.items() if column.file == PROBES]
