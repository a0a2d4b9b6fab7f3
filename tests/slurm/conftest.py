"""A cluster for all tests, and a clone whose experiments Snakemake sends to it.

They take over /etc/slurm and need root, so they run by `make test-slurm` alone.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


# The tests are no package: what they share is found beside them.
sys.path.insert(0, str(HERE))
from driver import LONG, LONG_EXPERIMENT, LONGER, PROFILE, Driver  # noqa: E402

from cluster import Cluster, missing_programs  # noqa: E402

_spec = importlib.util.spec_from_file_location("workflow_conftest", HERE.parent / "workflow" / "conftest.py")
workflow = importlib.util.module_from_spec(_spec)
sys.modules["workflow_conftest"] = workflow
_spec.loader.exec_module(workflow)


def pytest_configure():
    # A CI that loses patience sends this; the cluster must not outlive the tests.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Shells start background jobs, perhaps these tests, with SIGINT ignored, and drivers would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Skipped unless asked for; once asked for, a machine that cannot run them is an error."""
    here = [item for item in items if HERE in item.path.parents]
    if os.environ.get("TEST_SLURM") != "1":
        for item in here:
            item.add_marker(pytest.mark.skip(reason="takes over /etc/slurm: make test-slurm"))
    elif here and os.geteuid() != 0:
        raise pytest.UsageError("tests/slurm: needs root, for it takes over /etc/slurm")
    elif here and missing_programs():
        raise pytest.UsageError(f"tests/slurm: {' '.join(missing_programs())} missing; run tests/slurm/install.sh")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show with a failure what the jobs of its checkout have said: its folder may be gone when somebody reads of it."""
    report = yield
    here = getattr(item, "funcargs", {}).get("here")
    if report.when == "call" and report.failed and here is not None:
        for folder in ("logs", ".snakemake/slurm_logs"):
            for log in sorted((here.folder / folder).rglob("*.log")):
                report.sections.append((str(log.relative_to(here.folder)), log.read_text(errors="replace")[-4000:]))
    return report


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Two idle nodes."""
    yield from started(Cluster(tmp_path_factory.mktemp("cluster")))


def started(cluster):
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(autouse=True)
def clean_cluster(request):
    """Leave no jobs and no lost nodes to the next test."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").heal()


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A clone with the tiny and the long experiment, raw images, and a profile for this small cluster. Read only."""
    checkout = workflow.clone(tmp_path_factory.mktemp("site") / "distillery")
    workflow.add_tiny_experiment(checkout)
    checkout.write("config/long.yaml", LONG_EXPERIMENT)
    checkout.replace(PROFILE, "workers: 6\n", "workers: 1\n")
    checkout.replace(PROFILE, "workers: 6,", "workers: 1,")
    result = checkout.run("snakemake", "--cores", "2", "results/datasets/tiny/manifest.json")
    assert result.returncode == 0, result.stdout
    return checkout


@pytest.fixture(scope="session")
def uninterrupted(site, tmp_path_factory):
    """The weights of the long trainings when nothing happens to them."""
    checkout = copy(site, tmp_path_factory.mktemp("uninterrupted"))
    result = checkout.run("snakemake", "--cores", "2", LONG, LONGER)
    assert result.returncode == 0, result.stdout
    return {name: (checkout.folder / name).read_bytes() for name in (LONG, LONGER)}


@pytest.fixture(scope="session")
def copied():
    """Copy a checkout into a folder."""
    return copy


@pytest.fixture
def here(site, tmp_path):
    """A copy of the site of one's own."""
    return copy(site, tmp_path)


def copy(checkout, folder: Path):
    subprocess.run(["cp", "-a", checkout.folder, folder / "distillery"], check=True)
    return workflow.Checkout(folder / "distillery")


@pytest.fixture
def drive(cluster):
    """Start drivers; none survives the test."""
    drivers = []

    def start(checkout, *targets: str, **environment: str) -> Driver:
        drivers.append(Driver(checkout, cluster, *targets, **environment))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.kill()
