"""docs/extending.md, followed to the letter."""

import re

import pytest

pytestmark = pytest.mark.slow


def follow(checkout):
    """Write down what the document says, where it says so."""
    blocks = re.findall(r"```\w+\n(.*?)```", checkout.read("docs/extending.md"), flags=re.DOTALL)
    model, entry, recipe, experiment, ledger, run, table, term, options, count, metric, column = blocks
    checkout.write("src/distillery/models/zoo/plain.py", model)
    checkout.write("src/distillery/distill/losses/cka.py", term)
    declared, line = "src/distillery/experiment/schema/objective", '        "kd": logits.KDOptions,\n'
    checkout.append(f"{declared}/relations.py", "\n\n" + options)
    checkout.replace(f"{declared}/registry.py", line, f'{line}        "cka": relations.CKAOptions,\n')
    run += run.replace("plain-kd:", "plain-cka:").replace("kd: {weight: 0.9, temperature: 4}", "cka: {}")
    checkout.replace("src/distillery/experiment/zoo.py", '        "cifar_resnet8":', entry + '        "cifar_resnet8":')
    checkout.write("config/recipes/digits-plain.yaml", recipe)
    checkout.write("config/plain.yaml", experiment.replace("  tables:\n", run + "  tables:\n") + table)
    checkout.write("config/published/plain.csv", ledger)
    add_metric(checkout, count, metric, column)


def add_metric(checkout, count, metric, column):
    metrics, columns = "src/distillery/evaluation/metrics.py", "src/distillery/experiment/schema/columns.py"
    checkout.replace(metrics, "METRICS = {\n", f"{count}\n\nMETRICS = {{\n{metric}")
    checkout.replace(columns, '    "nll": Column(', column + '    "nll": Column(')
    checkout.replace("config/plain.yaml", "[top1, agreement,", "[top1, brier, agreement,")


def test_a_new_network_term_and_recipe_are_accepted(fresh):
    follow(fresh)
    taps = fresh.run("distillery", "taps", "cifar_resnet20", "plain", "--size", "8")
    assert taps.returncode == 0, taps.stdout
    check = fresh.run("distillery", "check", "config/plain.yaml")
    assert check.returncode == 0, check.stdout
    for name in ("kd", "cka"):
        assert re.search(rf"\| plain-{name} +\| +1 \| resnet20 +\| plain ", check.stdout)
    partial = fresh.run("distillery", "tabulate", "config/plain.yaml", "--partial")
    assert partial.returncode == 0, partial.stdout
    experiment = fresh.read("results/tables/plain.md")
    assert re.search(r"\| network +\| method +\| Run +\| Teacher .*\| +Brier ", experiment)
    assert re.search(r"\| plain +\| +not run \|.* 6\.42 k \|", experiment)
    assert fresh.planned("results/plain/plain-kd/seed0/metrics.json") == {
        "prepare data set digits",
        "train plain/resnet20, seed 0, a teacher",
        "train plain/plain-kd, seed 0",
        "evaluate plain/plain-kd, seed 0",
    }


MEASURE = """
import torch
from distillery.evaluation.metrics import METRICS, Predictions

labels_B = torch.tensor([0, 1])
logits_BC = torch.tensor([[0.0, 0.0], [0.0, 50.0]])
total = torch.zeros((), dtype=torch.float64)
METRICS["brier"].add(total, Predictions(logits_BC, labels_B, logits_BC, None))
print(METRICS["brier"].result(total, 2))
"""


def test_the_metric_computes(fresh):
    follow(fresh)
    result = fresh.run("python", "-c", MEASURE)
    assert result.stdout == "0.25\n"
