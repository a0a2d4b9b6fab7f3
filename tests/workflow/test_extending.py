"""docs/extending.md, followed to the letter."""

import re

import pytest

pytestmark = pytest.mark.slow


def follow(checkout):
    """Write down what the document says, where it says so."""
    blocks = re.findall(r"```\w+\n(.*?)```", checkout.read("docs/extending.md"), flags=re.DOTALL)
    model, entry, recipe, experiment, ledger, run, table, term, options = blocks
    checkout.write("src/distillery/models/zoo/plain.py", model)
    checkout.write("src/distillery/distill/losses/pkt.py", term)
    declared, registry = "src/distillery/experiment/schema/objective.py", "TERMS: Mapping[str, type[TermOptions]] ="
    checkout.replace(declared, registry, options + "\n\n" + registry)
    checkout.replace(declared, '        "kd": KDOptions,\n', '        "kd": KDOptions,\n        "pkt": PKTOptions,\n')
    run += run.replace("plain-kd:", "plain-pkt:").replace("kd: {weight: 0.9, temperature: 4}", "pkt: {weight: 30000}")
    checkout.replace(
        "src/distillery/experiment/zoo.py", '        "cifar_resnet8":', entry + '        "cifar_resnet8":'
    )
    checkout.write("config/recipes/digits-plain.yaml", recipe)
    checkout.write("config/plain.yaml", experiment.replace("  tables:\n", run + "  tables:\n") + table)
    checkout.write("config/published/plain.csv", ledger)


def test_each_addition_is_accepted(fresh):
    follow(fresh)
    taps = fresh.run("distillery", "taps", "cifar_resnet20", "plain", "--size", "8")
    assert taps.returncode == 0, taps.stdout
    check = fresh.run("distillery", "check", "config/plain.yaml")
    assert check.returncode == 0, check.stdout
    for name in ("kd", "pkt"):
        assert re.search(rf"\| plain-{name} +\| +1 \| resnet20 +\| plain ", check.stdout)
    partial = fresh.run("distillery", "tabulate", "config/plain.yaml", "--partial")
    assert partial.returncode == 0, partial.stdout
    experiment = fresh.read("results/tables/plain.md")
    assert re.search(r"\| network +\| method +\| Run +\| Teacher ", experiment)
    assert re.search(r"\| plain +\| +not run \|.* 6\.42 k \|", experiment)
    assert fresh.planned("results/plain/plain-kd/seed0/metrics.json") == {
        "prepare data set digits",
        "train plain/resnet20, seed 0, a teacher",
        "train plain/plain-kd, seed 0",
        "evaluate plain/plain-kd, seed 0",
    }
