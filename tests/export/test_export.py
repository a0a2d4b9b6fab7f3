"""Students taken away: what each format writes, that others load it without Distillery, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from distillery.atomic import new_folder
from distillery.cli import main
from distillery.errors import UserError
from distillery.evaluation.evaluate import evaluate_run
from distillery.evaluation.restore import restore_folder
from distillery.experiment import load_experiment
from distillery.export.formats import crop_share

FORMATS = ("timm", "onnx", "torch.export", "safetensors", "hf")
FILES = {
    "timm": {"model.safetensors"},
    "onnx": {"model.onnx"},
    "torch.export": {"model.pt2"},
    "safetensors": {"model.safetensors"},
    "hf": {"model.safetensors"},
}
RUNS = """    taught: {model: cifar_resnet8, recipe: tiny, teacher: big,
             objective: {ce: {weight: 0.5}, kd: {weight: 0.5, temperature: 2}}}
    timm:   {model: "timm:test_resnet", model_args: {drop_path_rate: 0.1}, recipe: tiny, seeds: [0],
             preprocess: {size: 32, resize: 36}}
    vision: {model: "torchvision:squeezenet1_1", recipe: tiny, seeds: [0], preprocess: {size: 32}}
    headed: {model: cifar_resnet8, recipe: tiny, teacher: big, seeds: [0], objective: {simkd: {}}}
"""
PUBLISHED = 'run,metric,value,std,n,selection,source\ntaught,top1,1.5,,,last,"A paper, table 1"\n'


@pytest.fixture(scope="module")
def made(prepared_tiny, tmp_path_factory):
    """A project with finished runs; nothing here changes it."""
    from distillery.training.job import Job, Machine
    from distillery.training.run import make_run

    folder = tmp_path_factory.mktemp("export") / "work"
    shutil.copytree(prepared_tiny, folder)
    page = folder / "config" / "tiny.yaml"
    text = page.read_text()
    tables = text[text.index("  tables:") :].replace("columns: [top1,", "baseline: timm, columns: [top1, gain,")
    page.write_text(text[: text.index("    taught:")] + RUNS + tables)
    (folder / "config" / "published").mkdir()
    (folder / "config" / "published" / "tiny.csv").write_text(PUBLISHED)
    torch.set_num_threads(1)
    experiment = load_experiment(page)
    for run in ("big", "taught", "timm", "vision", "headed"):
        make_run(Job(experiment, run, 0, folder / "results", Machine(workers=0, threads=1)))
    for run in ("taught", "timm"):
        evaluate_run(experiment, run, 0, folder / "results")
    return folder


@pytest.fixture
def export(made, tmp_path, monkeypatch, capsys):
    """Export a run from the project's folder; the new folder, and what was said."""
    monkeypatch.chdir(made)

    def call(run, to, *options, code=0):
        out = tmp_path / "out"
        with pytest.raises(SystemExit) as ended:
            main(["export", run, "--to", to, "--out", str(out), *options])
        said = capsys.readouterr()
        assert ended.value.code == code, said.err
        if code:
            assert said.err.count("\n") == 1
            assert not out.exists()
            assert not list(tmp_path.iterdir())
        return out, said.err if code else said.out

    return call


def needs(to):
    if to == "onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")


HOLDS = {
    "taught": ("onnx", "torch.export", "safetensors", "hf"),
    "timm": FORMATS,
    "vision": ("safetensors", "hf"),
    "headed": ("onnx", "torch.export", "safetensors", "hf"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "to"),
    [
        pytest.param(run, to, marks=[pytest.mark.slow] * (to in ("onnx", "torch.export")))
        for run, formats in HOLDS.items()
        for to in formats
    ],
)
def test_a_format_holds_the_network_its_card_and_its_classes(export, run, to):
    needs(to)
    out, said = export(f"tiny/{run}", to)
    assert {path.name for path in out.iterdir()} == FILES[to] | {"config.json", "README.md"}
    difference, limit = map(float, re.search(r"differ by (\S+) at most \(tolerance (\S+)\)", said).groups())
    assert difference <= limit <= 1e-2
    config = json.loads((out / "config.json").read_text())
    assert (config.get("label_names") or config["pretrained_cfg"]["label_names"]) == ["ape", "bee", "cow"]
    assert config["num_classes"] == 3
    _, front, body = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["pipeline_tag"] == "image-classification"
    assert "ape, bee, cow" in body


@pytest.mark.slow
def test_the_card_says_what_it_is_how_good_and_how_it_was_made(export, made):
    out, _ = export("tiny/taught", "safetensors")
    card = (out / "README.md").read_text()
    record = json.loads((made / "results" / "tiny" / "taught" / "seed0" / "run.json").read_text())
    metrics = json.loads((made / "results" / "tiny" / "taught" / "seed0" / "metrics.json").read_text())
    for part in (
        "Its teacher is `tiny/big`, `cifar_resnet14`",
        f"| Top-1 (%) | {metrics['top1']:.2f} |",
        f"- Top-1 (%): {metrics['top1']:.2f} over 1 seed, published 1.5 (A paper, table 1): **reproduced**",
        "- Gain (points) over `timm`: ",
        " (n = 1; needs seeds): **no claim**",
        record["digest"],
        record["weights_sha256"],
        "temperature: 2.0",
        "validation images of `tiny`",
    ):
        assert part in card
    assert str(made) not in card
    making = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    assert making["objective"]["kd"] == {"weight": 0.5, "temperature": 2.0}


def test_a_card_without_a_page_or_measurements_says_so(export):
    out, _ = export("tiny/vision", "safetensors", "--config-dir", "nowhere")
    card = (out / "README.md").read_text()
    assert "Not evaluated." in card
    assert "Not compared with published numbers: nowhere/tiny.yaml does not stand for this run." in card


@pytest.mark.slow
def test_an_experiment_is_exported_run_by_run_and_a_second_call_goes_on(export, made):
    out, said = export("tiny", "hf")
    runs = {"big", "headed", "taught", "timm", "vision"}
    assert {path.name for path in out.iterdir()} == {f"{run}-seed0" for run in runs}
    for run in runs:
        record = json.loads((made / "results" / "tiny" / run / "seed0" / "run.json").read_text())
        assert record["digest"] in (out / f"{run}-seed0" / "README.md").read_text()
    assert said.count("differ by") == len(runs)
    shutil.rmtree(out / "taught-seed0")
    said = export("tiny", "hf")[1]
    assert (said.count("differ by"), said.count("is there already, and was left alone")) == (1, 4)


def test_a_run_that_a_format_cannot_hold_is_named_and_the_others_are_exported(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(made)
    with pytest.raises(SystemExit) as ended:
        main(["export", "results/tiny", "--to", "timm", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["timm-seed0"]
    assert "--to: timm cannot hold cifar_resnet8 with the head" in said
    assert said.splitlines()[-1].endswith(
        "results/tiny: 4 of 5 runs could not be exported: big, headed, taught, vision"
    )


HIDE = "import sys\nsys.modules['distillery'] = None\n"


def without_distillery(script, folder):
    done = subprocess.run(
        [sys.executable, "-c", HIDE + script], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def expected_of(made, run):
    finished = restore_folder(made / "results" / "tiny" / run / "seed0")
    size = finished.preprocess.size
    images = torch.linspace(0, 1, 2 * 3 * size * size).view(2, 3, size, size)
    return finished, finished.predict(images), size


@pytest.mark.slow
def test_timm_loads_a_network_of_timm_without_distillery(export, made):
    out, _ = export("tiny/timm", "timm")
    finished, expected, size = expected_of(made, "timm")
    found = without_distillery(
        "import json, timm, torch\n"
        "network = timm.create_model('local-dir:.', pretrained=True).eval()\n"
        "config = timm.data.resolve_model_data_config(network)\n"
        "mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ('mean', 'std'))\n"
        f"images = torch.linspace(0, 1, {2 * 3 * size * size}).view(2, 3, {size}, {size})\n"
        "resize = timm.data.create_transform(**config).transforms[0]\n"
        "print(json.dumps([network((images - mean) / std).tolist(), list(config['mean']), resize.size,"
        " network.pretrained_cfg['label_names']]))\n",
        out,
    )
    torch.testing.assert_close(torch.tensor(found[0]), expected, rtol=1e-4, atol=1e-4)
    assert found[1:] == [finished.record["statistics"]["mean"], 36, ["ape", "bee", "cow"]]


@pytest.mark.slow
@pytest.mark.parametrize(("run", "to"), [("headed", "onnx"), ("headed", "torch.export")])
def test_traced_networks_are_loaded_without_distillery_and_normalise_themselves(export, made, run, to):
    needs(to)
    out, _ = export(f"tiny/{run}", to)
    _, expected, size = expected_of(made, run)
    load = {
        "onnx": "import onnxruntime\nsession = onnxruntime.InferenceSession('model.onnx')\n"
        "assert json.loads(session.get_modelmeta().custom_metadata_map['label_names']) == ['ape', 'bee', 'cow']\n"
        "print(json.dumps(session.run(['logits'], {'images': images.numpy()})[0].tolist()))\n",
        "torch.export": "print(json.dumps(torch.export.load('model.pt2').module()(images).tolist()))\n",
    }
    images = f"images = torch.linspace(0, 1, {2 * 3 * size * size}).view(2, 3, {size}, {size})\n"
    found = without_distillery(f"import json, torch\n{images}{load[to]}", out)
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("run", "to"), [("timm", "timm"), ("taught", "hf"), ("vision", "hf"), ("headed", "safetensors")]
)
def test_the_code_on_a_card_runs(export, made, run, to, monkeypatch):
    out, _ = export(f"tiny/{run}", to)
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(out)
    exec(code, names := {})
    finished, expected, size = expected_of(made, run)
    images = torch.linspace(0, 1, 2 * 3 * size * size).view(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(names["network"](finished.normalize(images)), expected)


def test_weights_are_those_of_the_run(export, made):
    out, _ = export(str(made / "results" / "tiny" / "taught" / "seed0"), "hf")
    ours = load_file(made / "results" / "tiny" / "taught" / "seed0" / "weights.safetensors")
    theirs = load_file(out / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    ("run", "to", "options", "line"),
    [
        (
            "tiny/taught",
            "timm",
            (),
            "cifar_resnet8 is a network of Distillery's zoo, which timm does not know; use --to onnx",
        ),
        ("tiny/vision", "timm", (), "torchvision:squeezenet1_1 is a network of torchvision, which timm does not know"),
        ("tiny/headed", "timm", (), "timm cannot hold cifar_resnet8 with the head that simkd deploys with it"),
        ("tiny/taugth", "hf", (), "tiny/taugth: no such run in results; did you mean 'tiny/taught'"),
        ("tinny", "hf", (), "tinny: no such run in results"),
        ("tiny/taught", "hf", ("--seed", "1"), "--seed: tiny/taught has no seed 1 in results; valid: 0"),
        ("tiny/taught", "ptx", (), "'ptx' is not one of"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(export, run, to, options, line):
    _, said = export(run, to, *options, code=2)
    assert line in said


def test_an_unfinished_or_damaged_run_is_refused_in_one_line(export, made, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(made / "results" / "tiny" / "taught" / "seed0", folder / "results" / "tiny" / "taught" / "seed0")
    monkeypatch.chdir(folder)
    run = folder / "results" / "tiny" / "taught" / "seed0"
    weights = (run / "weights.safetensors").read_bytes()
    (run / "weights.safetensors").write_bytes(weights[:-8] + b"x" * 8)
    assert "not the weights that its run.json is about" in export("tiny/taught", "hf", code=2)[1]
    (run / "weights.safetensors").unlink()
    assert "weights.safetensors: no such file" in export("tiny/taught", "hf", code=2)[1]
    (run / "run.json").unlink()
    said = export("tiny/taught", "hf", code=2)[1]
    assert "not finished, for it has no run.json; finish it with: distillery train config/tiny.yaml taught" in said


def test_a_folder_that_is_there_is_left_alone(export, tmp_path):
    (tmp_path / "out").mkdir()
    export("tiny/taught", "hf")  # an empty one is filled
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(SystemExit):
        main(["export", "tiny/taught", "--to", "safetensors", "--out", str(tmp_path / "out")])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_nothing_is_left_of_an_export_whose_logits_differ(export, monkeypatch):
    from distillery.export import formats

    def other(finished, folder):
        (folder / "model.safetensors").write_text("half")
        return lambda images: finished.predict(images) + 0.1

    monkeypatch.setitem(formats.FORMATS, "hf", other)
    assert "gives other logits (difference 1.0e-01" in export("tiny/taught", "hf", code=2)[1]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"), new_folder(tmp_path / "out"):
        pass


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (32, 32), (32, 36), (299, 333), (176, 224), (7, 99)])
def test_timms_share_gives_the_short_side_again(size, resize):
    assert int(size / crop_share(size, resize)) == resize


def test_by_default_the_folder_names_the_run(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["export", "tiny/taught", "--to", "hf", "--results", str(made / "results")])
    assert capsys.readouterr().out.startswith("exports/tiny/taught-seed0/hf: README.md, config.json, model.safetensors")
    assert Path("exports/tiny/taught-seed0/hf/README.md").is_file()
