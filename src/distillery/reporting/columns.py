"""The columns a table may have: where each number comes from, how it is printed, and which way is better."""

import math
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Column:
    """One measure of a network.

    ``better`` is None for what the experimenter chose with the architecture: parameters, operations and size are not
    won or lost by training, so nothing of them is set in bold, and a published count is matched, not beaten.
    """

    heading: str
    file: Literal["metrics.json", "profile.json"]
    key: str
    meaning: str
    better: Better | None
    decimals: int | None = None  # None: three digits and a prefix, as in 25.6 M
    unit: str = ""
    share: bool = False  # a percentage of the validation images
    complement: str | None = None  # the column that is 100 minus this one
    timed: bool = False  # measured on one machine, and different each time
    taught: bool = False  # compares a run with its teacher

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


def _share(heading: str, key: str, meaning: str, complement: str | None = None, better: Better = "higher") -> Column:
    taught = key == "agreement"
    return Column(heading, "metrics.json", key, meaning, better, 2, share=True, complement=complement, taught=taught)


def _counted(heading: str, key: str, meaning: str, unit: str = "") -> Column:
    return Column(heading, "profile.json", key, meaning, None, unit=unit)


def _timed(heading: str, key: str, meaning: str, better: Better, decimals: int) -> Column:
    return Column(heading, "profile.json", key, meaning, better, decimals, timed=True)


COLUMNS = {
    "top1": _share("Top-1 (%)", "top1", "share of images whose most probable class is right", "error1"),
    "top5": _share("Top-5 (%)", "top5", "share of images whose class is among the five most probable", "error5"),
    "error1": _share("Top-1 error (%)", "top1", "share of images whose most probable class is wrong", "top1", "lower"),
    "error5": _share(
        "Top-5 error (%)", "top5", "share of images whose class is not among the five most probable", "top5", "lower"
    ),
    "gain": Column(
        "Gain (points)",
        "metrics.json",
        "top1",
        "top-1 less the best that was published for the network before, in percentage points",
        "higher",
        2,
    ),
    "nll": Column("NLL", "metrics.json", "nll", "mean negative log-likelihood of the right class", "lower", 3),
    "ece": Column("ECE (%)", "metrics.json", "ece", "expected calibration error, 15 bins of confidence", "lower", 2),
    "agreement": _share("Agreement (%)", "agreement", "share of images that student and teacher give the same class"),
    "params": _counted("Params", "params", "numbers that training adjusts"),
    "macs": _counted("MACs", "macs", "multiplications with addition for one image"),
    "size": _counted("Size", "size_bytes", "file of weights", "B"),
    "size_ratio": Column(
        "Size ratio (%)",
        "profile.json",
        "size_ratio",
        "file of weights, as a share of the teacher's",
        None,
        2,
        taught=True,
    ),
    "latency": _timed("Latency (ms)", "latency_ms", "median time of one image alone", "lower", 2),
    "throughput": _timed("Images/s", "throughput", "images a second in large batches", "higher", 0),
    "gpu_throughput": _timed("GPU images/s", "gpu_throughput", "images a second in large batches", "higher", 0),
    "cpu_throughput": _timed("CPU images/s", "cpu_throughput", "images a second in large batches", "higher", 0),
}
