"""Snakemake with the slurm profile, as a user starts it, and what tests ask about its work."""

import json
import os
import re
import signal
import subprocess
import time
from contextlib import suppress

PROFILE = "workflow/profiles/slurm/profile.yaml"
# Polling for users of a cluster is slow; and jobs here last seconds.
HASTE = [
    "--seconds-between-status-checks",
    "1",
    "--latency-wait",
    "10",
    "--max-jobs-per-timespan",
    "100/1s",
]

LONG_EXPERIMENT = """
long:
  dataset: tiny
  runs:
    long: {model: cifar_resnet8, recipe: tiny, epochs: 100}
    longer: {model: cifar_resnet8, recipe: tiny, epochs: 400}
  tables:
    one: {rows: [long], columns: [top1, nll]}
"""
LONG = "results/long/long/seed0/weights.safetensors"
LONGER = "results/long/longer/seed0/weights.safetensors"


class Driver:
    """Snakemake with the slurm profile, at work in a checkout."""

    def __init__(self, checkout, cluster, *targets: str, **environment: str) -> None:
        self.checkout, self.cluster = checkout, cluster
        self.log = checkout.folder / "driver.log"
        self.process = subprocess.Popen(
            ["snakemake", *targets, "--profile", "slurm", *HASTE],
            cwd=checkout.folder,
            env=checkout.full_environment() | environment,
            stdout=self.log.open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self, seconds: float = 600) -> int:
        """Wait for the end, letting requeued jobs begin without their two minutes' delay; kill what does not end."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self.cluster.hurry()
            time.sleep(0.5)
        if self.process.poll() is None:
            self.kill()
            raise AssertionError(f"not within {seconds:.0f} s:\n{self.said()}\n{self.cluster.jobs()}")
        return self.process.returncode

    def finish(self, seconds: float = 600) -> None:
        """Wait for success."""
        assert self.wait(seconds) == 0, self.said()

    def wait_until(self, condition, what: str, seconds: float = 180) -> None:
        """Wait for something that the driver's jobs do."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.said()}"
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"not within {seconds:.0f} s: {what}\n{self.said()}\n{self.cluster.jobs()}")
            self.cluster.hurry()
            time.sleep(0.2)

    def training(self, run: str = "long/long", epoch: int = 5) -> dict[str, str]:
        """Wait until a run has come to an epoch, or is past it; its Slurm job."""
        log = self.checkout.folder / "logs" / run / "seed0" / "train.log"

        def there() -> bool:
            ended = re.findall(r": epoch (\d+)/", log.read_text()) if log.exists() else []
            return any(int(number) >= epoch for number in ended) and bool(self.cluster.running())

        self.wait_until(there, f"epoch {epoch}")
        (job,) = self.cluster.running(run.replace("/", "_"))
        return job

    def kill(self) -> None:
        """As a login node that is rebooted does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def said(self) -> str:
        return self.log.read_text()[-6000:]


def sessions(checkout, run: str = "long/long") -> list[dict]:
    """Where a run was made, session by session."""
    return json.loads(checkout.read(f"results/{run}/seed0/run.json"))["sessions"]
