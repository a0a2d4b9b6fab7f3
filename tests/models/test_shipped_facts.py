"""What is shipped of the networks of Distillery's pages is all that their checks ask for, and true.

    RECORD=1 pytest tests/models/test_shipped_facts.py     # after code that builds networks, a page or the lock changed

Then every network is built, which takes two minutes and 2 GB.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distillery.atomic import write_json
from distillery.data.prepare import prepare_dataset
from distillery.experiment import load_experiment
from distillery.experiment.plan import Plan
from distillery.experiment.schema.recipe import TimmOptimizer
from distillery.models import facts
from distillery.models.facts import Network
from distillery.paths import dataset_folder
from distillery.project import create_project
from distillery.training import check
from distillery.training.forecast import Forecast

CONFIG = Path(__file__).parents[2] / "config"
PAGES = [path for path in sorted(CONFIG.glob("*.yaml")) if path.name != "datasets.yaml"]
LOCKED = dict(re.findall(r"^([a-z]+)==(\S+)", (CONFIG.parent / "requirements.txt").read_text(), re.MULTILINE))
SHIPPED = {} if os.environ.get("RECORD") else json.loads(facts.SHIPPED.read_text())["facts"]
HOW = f"RECORD=1 pytest {Path(__file__).name}"


def built(key):
    """A fact, found anew."""
    kind, *given = json.loads(key)
    if kind == "optimizer":
        return check._tried(TimmOptimizer.model_validate(given[0]))
    networks = (isinstance(each, list) and Network(*each[:2], tuple(map(tuple, each[2]))) for each in given)
    return facts.FOUND_BY[kind](*(network or each for network, each in zip(networks, given, strict=True)))


class Asked(dict):
    """Facts by their keys; of sizes, which are of no consequence here, any will do."""

    def __contains__(self, key):
        if key not in self.keys():
            self[key] = 1 if key.startswith('["bytes"') else SHIPPED.get(key) or built(key)
        return True


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Keys of what checks of all pages ask for: before any images are prepared, and once those of digits are."""
    known = Asked()
    monkeypatch.setattr(facts, "_facts", lambda: known)
    create_project(tmp_path / "project")
    digits = Plan(CONFIG).dataset("digits").model_copy(update={"path": str(tmp_path / "digits")})
    prepare_dataset("digits", digits, dataset_folder(tmp_path / "prepared", "digits"), 0)
    for page in (*PAGES, tmp_path / "project/config/example.yaml"):
        for results in ("none", "prepared"):
            experiment = load_experiment(page)
            forecast = Forecast(experiment, tmp_path / results, 0)
            check.check_experiment(experiment, forecast)
            forecast.check_networks()
            list(check.notes(experiment, forecast))
    return sorted(known)


@pytest.mark.slow
def test_all_networks_of_the_pages_are_shipped_and_some_are_measured_again(asked):
    if os.environ.get("RECORD"):
        write_json(facts.SHIPPED, {"code": facts._code(), "facts": {key: built(key) for key in asked}})
    shipped = json.loads(facts.SHIPPED.read_text())
    locked = ", ".join(f"{package} {LOCKED[package]}" for package in ("torch", "timm", "torchvision"))
    assert shipped["code"].endswith(f" {locked}"), f"the lock has other libraries now: {HOW}"
    if facts._libraries() != locked:
        pytest.skip("the libraries here are not those of the lock")
    assert shipped["code"] == facts._code(), f"networks may be built otherwise now: {HOW}"
    assert sorted(shipped["facts"]) == asked, f"the pages name other networks now: {HOW}"
    small = [key for key in asked if shipped["facts"][key] < 20e6]
    for key in small[::8]:
        assert shipped["facts"][key] == built(key), f"{key}: {HOW}"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["giants", "cub200", "imagenet-methods"])
def test_the_first_check_of_a_page_needs_no_torch(page, tmp_path):
    """Of banks that hold embeddings, terms that name stages, and another optimizer than SGD and AdamW."""
    if json.loads(facts.SHIPPED.read_text())["code"] != facts._code():
        pytest.skip("the libraries here are not those of the lock")
    command = [sys.executable, "-X", "importtime", "-m", "distillery", "check", str(CONFIG / f"{page}.yaml")]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CONFIG.parent, env=environment)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pydantic" in imported
    assert sorted(imported & {"torch", "timm", "torchvision"}) == []
