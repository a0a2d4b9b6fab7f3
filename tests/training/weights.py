"""Weights that were spoilt, or come from another data set; more images to judge a teacher by."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

from distillery.data.prepare import prepare_dataset
from distillery.experiment import load_experiment
from distillery.experiment.schema.dataset import Dataset
from distillery.results import file_hash, write_sealed
from distillery.training.job import Job, Machine
from distillery.training.run import make_run


def blind(teacher, layer="fc", number=0.0):
    state = load_file(teacher / "weights.safetensors")
    blank = {name: torch.full_like(value, number) if name.startswith(layer) else value for name, value in state.items()}
    save_file(blank, teacher / "weights.safetensors")
    record = json.loads((teacher / "run.json").read_text())
    write_sealed(teacher / "run.json", record | {"weights_sha256": file_hash(teacher / "weights.safetensors")})


def more_validation_images(workplace):
    """As many as it takes to refuse one that guesses."""
    folder = workplace.folder / "more"
    shutil.copytree(workplace.folder / "data" / "tiny", folder)
    for path in list(folder.glob("val/*/*.png")):
        shutil.copy(path, path.with_name(f"again-{path.name}"))
    dataset = Dataset(path=str(folder))
    prepare_dataset("tiny", dataset, workplace.results / "datasets/tiny", workers=1)


def make_elsewhere(path, results, line):
    path.write_text(f"other: {{dataset: other, runs: {{taken: {{model: cifar_resnet14, {line}}}}}}}\n")
    job = Job(load_experiment(path), "taken", 0, results, Machine(workers=0, threads=1))
    make_run(job)
    return json.loads((job.folder / "run.json").read_text())
