"""What is computed and the integers that stand for it move together.

A run's digest holds an integer ``numerics`` for each thing whose mathematics may change, and no code. So whoever
changes what is computed has to raise the integer, or old results pass for new ones; and whoever raises it makes all
runs stale. ``tests/numerics.json`` keeps each integer with outputs on fixed inputs:

    RECORD=1 pytest tests/test_numerics.py     # after an integer was raised, or something new came

Outputs are kept as a few sums and compared to five digits: processors round differently, changes of mathematics show.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from distillery.data.augment.lighting import add_shifts
from distillery.data.orders import flow_sample, partner_order, repeated_order, shuffled_order
from distillery.data.prepare import prepare_dataset
from distillery.data.transforms import eval_transform, train_transform
from distillery.distill.losses.mgd import match_channels
from distillery.distill.losses.partial_l2 import bn_margin
from distillery.distill.objective import build_objective
from distillery.distill.step import Maps, Outputs, StepInputs, View
from distillery.distill.term import OwnStage, StagePair, TermContext
from distillery.evaluation.metrics import evaluate_model
from distillery.evaluation.probe import linear_probe, nearest_neighbours
from distillery.evaluation.profile import count_macs, count_parameters
from distillery.experiment import ledger
from distillery.experiment.schema.augmentation import Augmentation
from distillery.experiment.schema.dataset import Dataset
from distillery.experiment.schema.objective import TERMS, Objective
from distillery.experiment.schema.recipe import Preprocess, Recipe
from distillery.experiment.zoo import ZOO
from distillery.models import create_model
from distillery.models.pretrained.load import import_weights
from distillery.models.taps import Features
from distillery.models.weights import read_safetensors
from distillery.randomness import seed_generators
from distillery.training.optim import learning_rate, total_epochs

FILE = Path(__file__).with_name("numerics.json")


# --- the rule -------------------------------------------------------------------------------------------------------


def fault(name, kept, numerics, outputs):
    """What is wrong with an integer and its outputs, given those that were kept; None if nothing is."""
    if kept is None:
        return f"{name}: has no record yet; RECORD=1 pytest {Path(__file__).name}"
    same = len(kept["outputs"]) == len(outputs) and all(
        math.isclose(ours, theirs, rel_tol=1e-5, abs_tol=1e-6)
        for ours, theirs in zip(outputs, kept["outputs"], strict=True)
    )
    if same and kept["numerics"] == numerics:
        return None
    if kept["numerics"] == numerics:
        return f"{name}: computes something else than before; raise its `numerics` (now {numerics}), or undo the change"
    if same:
        return f"{name}: `numerics` went from {kept['numerics']} to {numerics}, but nothing else is computed; undo it"
    return f"{name}: changed together with its `numerics`; RECORD=1 pytest {Path(__file__).name}"


@pytest.mark.parametrize(
    ("numerics", "outputs", "expected"),
    [
        (1, [1.0, 2.0], None),
        (1, [1.000001, 2.0], None),
        (1, [1.1, 2.0], "raise its `numerics`"),
        (1, [1.0], "raise its `numerics`"),
        (2, [1.0, 2.0], "undo it"),
        (2, [1.1, 2.0], "changed together"),
    ],
)
def test_outputs_and_their_integer_may_only_change_together(numerics, outputs, expected):
    found = fault("kd", {"numerics": 1, "outputs": [1.0, 2.0]}, numerics, outputs)
    assert (found is None) if expected is None else expected in found


def test_a_new_computation_needs_a_record():
    assert "has no record yet" in fault("rkd", None, 1, [1.0])


def check(name, numerics, *values):
    """Compare outputs with those that were kept; with RECORD, keep what is new or was raised."""
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    outputs = [sum_ for value in values for sum_ in sums(value)]
    found = fault(name, kept.get(name), numerics, outputs)
    if found is not None and "RECORD" in os.environ and "RECORD=1" in found:
        kept[name] = {"numerics": numerics, "outputs": [float(f"{output:.8g}") for output in outputs]}
        lines = [f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(kept.items())]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        found = None
    assert found is None, found


def sums(value):
    """A few sums that see every number of a tensor and its place."""
    flat = torch.as_tensor(np.asarray(value, dtype=np.float64) if not torch.is_tensor(value) else value)
    flat = flat.detach().double().flatten()
    places = torch.arange(len(flat), dtype=torch.float64)
    return [flat.sum().item(), (flat * torch.cos(1.7 * places)).sum().item(), flat.abs().sum().item()]


# --- what is computed -----------------------------------------------------------------------------------------------


def picture(height=20, width=30):
    generator = np.random.Generator(np.random.Philox(key=height * 1000 + width))
    coarse = generator.integers(0, 256, (3, height // 4 + 1, width // 4 + 1))
    return torch.from_numpy(np.kron(coarse, np.ones((1, 4, 4)))[:, :height, :width].astype(np.uint8))


AUGMENTATIONS = {
    "random_crop": {"padding": 4, "mode": "reflect"},
    "random_resized_crop": {},
    "random_resized_crop dali": {"rule": "dali"},
    "random_resized_crop bake": {"rule": "bake"},
    "horizontal_flip": {},
    "rotation": {"degrees": 20},
    "grayscale": {"p": 0.5},
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "color_jitter rare": {"brightness": 0.4, "p": 0.5},
    "rand_augment": {},
    "fixmatch": {},
    "lighting": {},
}


def test_every_augmentation_has_a_record():
    names = {block.model_fields["name"].annotation.__args__[0] for block in Augmentation.__args__[0].__args__}
    assert {name.partition(" ")[0] for name in AUGMENTATIONS} == names


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation(name):
    recipe = recipe_of(augment=[{"name": name.partition(" ")[0], **AUGMENTATIONS[name]}], preprocess={"size": 16})
    transform = train_transform(recipe.preprocess, recipe.augment, (0.5, 0.5, 0.5))
    made = []
    for index in range(8):
        seed_generators(0, "augment", index)
        image = transform(picture())
        shift = transform.draw_shift()
        made.append(image if shift is None else add_shifts(image[None], shift[None])[0])
    check(f"augmentation {name}", recipe.augment[0].numerics, torch.stack([image.float() for image in made]))


def recipe_of(**keys):
    body = {
        "epochs": 6,
        "batch": 8,
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"name": "constant"},
        "preprocess": {"size": 8},
    }
    return Recipe.model_validate(body | keys)


@pytest.mark.parametrize(
    "keys", [{"size": 16}, {"size": 16, "resize": 18, "interpolation": "bicubic"}, {"size": 16, "rule": "bake"}]
)
def test_preprocess(keys):
    preprocess = Preprocess.model_validate(keys)
    image = eval_transform(preprocess)(picture())
    check(f"preprocess {' '.join(map(str, keys.values()))}", preprocess.numerics, image.float())


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_network(name):
    size = ZOO[name].input_size
    torch.manual_seed(0)
    # In float32, what cancels out in a deep network leaves few digits, and others on each kind of processor.
    network = create_model(name, 10).eval().double()
    with torch.no_grad():
        logits = network(picture(size, size)[None].double() / 255)
    check(f"network {name}", ZOO[name].numerics, logits)


# The smallest network for small images of each builder.
SMALLEST = {
    ZOO[name].builder: name
    for name in sorted(ZOO, key=lambda name: ZOO[name].parameters, reverse=True)
    if ZOO[name].input_size == 32
}.values()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_network_in_training_mode(name):
    torch.manual_seed(0)
    network = create_model(name, 10).double()
    with torch.no_grad():
        logits = network(
            picture(32, 32)[None].double().repeat(2, 1, 1, 1) / torch.tensor([255, 128])[:, None, None, None]
        )
    means = [value for key, value in sorted(network.state_dict().items()) if key.endswith("running_mean")]
    check(f"network {name} in training mode", ZOO[name].numerics, logits, *means[-1:])


@pytest.mark.parametrize("name", ["cifar_resnet8", "timm:test_vit"])
def test_counts(name):
    """Parameters and operations of convolutions, linear layers and attention."""
    network = create_model(name, 10).eval()
    counts = [count_parameters(network), count_macs(network, 160 if "vit" in name else 32)]
    check(f"counts of {name}", ledger.PROFILING, counts)


# Every option that takes another way through a term.
VARIANTS = {
    "ce": [{}, {"label_smoothing": 0.1, "weight": {"value": 2.0, "warmup": 3}}],
    "kd": [{}, {"standardize": True}, {"temperature": "learned"}],
    "dkd": [{}, {"standardize": True}],
    "wttm": [{}, {"weighted": False}],
    "uskd": [{}, {"compat": "reference"}],
    "mgd": [
        *({"reducer": reducer} for reducer in ("amp", "rd", "sm", "sp")),
        {"normalize": "mean", "compat": "reference", "ignore": [0]},
    ],
    "overhaul": [{}, {"normalize": "mean", "ignore": [0]}],
    "crd": [{"negatives": 5}],
    "similarity": [{"queue": 8}, {"queue": 4, "temperature": 0.5}],
    "mlkd": [{}, {"compat": "fixed", "standardize": True}],
    "fitnet": [{}, {"compat": "reference"}],
    "at": [{}, {"power": 1, "ignore": [0]}],
    "sp": [{}, {"compat": "reference"}],
    "reviewkd": [{}, {"mid_channels": 3, "student": "before"}],
    "masked_generative": [{"alpha": 1.0, "masked_share": 0.4}],
    "simkd": [{}, {"factor": 3, "rectify": False}],
    "cat": [{}, {"resolution": 3, "normalize": True}, {"binarize": True, "compat": "fixed"}],
    "srrl": [{}, {"regression": 3, "rectify": False}],
    "ofa": [{}, {"eps": [1.5, 2], "temperature": 2, "stages": [1]}],
}


def margins():
    """The margins by which MGD and Overhaul cut the teacher's features."""
    return bn_margin(torch.tensor([0.0, 0.5, 1.0, -2.0, 0.1]), torch.tensor([0.3, -0.2, 0.0, 1.0, 5.0]))


def several_optima():
    """The matching that is taken of several that cost as little, by each way that there is."""
    shapes = ((80, 160), (300, 1200), (600, 1200), (300, 600), (600, 300))
    costs = [torch.from_numpy(np.arange(s * t).reshape(s, t) ** 2 % 7) / 1e5 for s, t in shapes]
    costs[3][::9] = 4 / 1e5  # channels of zeros
    return torch.cat([match_channels(cost, "amp").flatten() for cost in costs])


# What a term computes beside its value.
BESIDE = {"mgd": lambda: [margins(), several_optima()]}


def test_margins():
    """MGD's are kept with its term."""
    check("margins of overhaul", TERMS["overhaul"].numerics, margins())


@pytest.mark.parametrize("name", TERMS)
def test_term(name):
    """Two steps of each term on made-up outputs of two networks: its values and what it remembers."""
    outputs = []
    for options in VARIANTS.get(name, [{}]):
        torch.manual_seed(0)
        context = term_context()
        objective = build_objective(Objective.model_validate({name: options}), context)
        head = objective.terms[name].head(context)
        objective.begin_epoch(0, lambda limit: [step_inputs(0)])
        for step in range(2):
            torch.manual_seed(step)
            inputs = step_inputs(step)
            if head is not None:
                logits_BC, made_of = head(Features(averaged=inputs.student.averaged))
                inputs = inputs._replace(student=inputs.student._replace(logits_BC=logits_BC, head=made_of))
            outputs += [objective(inputs)["loss"], *([] if head is None else [inputs.student.logits_BC])]
            objective.end_step()
        outputs += [buffer for _, buffer in sorted(objective.named_buffers()) if buffer.numel()]
    outputs += BESIDE.get(name, list)()
    check(f"term {name}", TERMS[name].numerics, *outputs)


def term_context():
    margin = -torch.linspace(0.1, 0.9, 6).reshape(1, -1, 1, 1)

    def classifier(features):
        layer = torch.nn.utils.skip_init(torch.nn.Linear, features, 4)
        layer.weight.data = torch.sin(torch.arange(4.0 * features)).reshape(4, features)
        layer.bias.data = torch.arange(4.0)
        return layer

    return TermContext(
        stages=(StagePair(3, 6, margin), StagePair(4, 6, None)),
        student_features=5,
        teacher_features=7,
        student_classifier=classifier(5),
        teacher_classifier=classifier(7),
        student_stages=(OwnStage(3, (4, 4)), OwnStage(8, (14, 14), 1)),
        student_last=OwnStage(5, (2, 4)),
        teacher_last=OwnStage(7, (2, 4)),
        teacher_map_size=(2, 2),
        labels=np.arange(24) % 4,
        classes=4,
        epochs=2,
    )


def step_inputs(step):
    def network(channels, features, pace):
        def values(*shape):
            flat = torch.arange(math.prod(shape), dtype=torch.float32)
            return (torch.sin(flat * (pace + step)) + torch.cos(flat * pace / 2)).reshape(shape)

        maps = tuple(values(6, width, 4, 4) for width in channels)
        once = Maps(maps, maps, maps), (values(6, 3, 4, 4), values(6, 197, 8)), values(6, features, 2, 4)
        last = values(6, features, 2, 4)
        return Outputs(2 * values(6, 4), maps, values(6, features), maps, maps, maps, *once, last=last)

    indices = torch.arange(6) * 3 + step
    student, teacher = network((3, 4), 5, 1.3), network((6, 6), 7, 0.9)
    view = View(network((3, 4), 5, 1.1), network((6, 6), 7, 0.8))
    return StepInputs(student, indices % 4, teacher, indices_B=indices, view=view)


SCHEDULES = [
    {"name": "step", "drops": [2, 4], "warmup": {"name": "ratio", "epochs": 2, "extends": True}},
    {"name": "step", "every": 2, "warmup": {"name": "stepwise", "epochs": 1}},
    {"name": "cosine", "min_lr": 0.001, "cooldown": 2, "warmup": {"name": "absolute", "epochs": 2, "lr": 0.01}},
    {"name": "cosine", "restart_every": 3},
]


def test_engine():
    """Schedules, optimizers, and the orders of images."""
    recipes = [recipe_of(schedule=schedule) for schedule in SCHEDULES]
    rates = [
        learning_rate(recipe, epoch, step, 3)
        for recipe in recipes
        for epoch in range(total_epochs(recipe))
        for step in range(3)
    ]
    labels = np.arange(60) % 7
    orders = [order(epoch) for order in (shuffled_order(60, 3), repeated_order(60, 3, 2)) for epoch in range(2)]
    orders += [partner_order(labels, 3, 2)(1), flow_sample(60, 3, 1, 20)]
    trained = [weights_after(optimizer) for optimizer in OPTIMIZERS]
    check("engine", ledger.ENGINE, rates, *orders, *trained)


OPTIMIZERS = [
    {"name": "sgd", "lr": 0.1, "weight_decay": 0.01, "nesterov": True},
    {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
]


def weights_after(optimizer):
    """A small network's weights after three steps."""
    from distillery.training.optim import build_optimizer

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    steps = build_optimizer(recipe_of(optimizer=optimizer).optimizer, network)
    images = torch.sin(torch.arange(20.0)).reshape(5, 4)
    for _ in range(3):
        network(images).square().sum().backward()
        steps.step()
        steps.zero_grad()
    return torch.cat([parameter.flatten() for parameter in network.parameters()])


def test_preparing(tmp_path):
    from PIL import Image

    for split, count in (("train", 6), ("val", 3)):
        for label in ("ape", "bee"):
            for number in range(count):
                path = tmp_path / "raw" / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = picture(16 + number, 16 + len(label))
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    dataset = Dataset.model_validate({"path": str(tmp_path / "raw"), "holdout": 0.34})
    manifest = prepare_dataset("few", dataset, tmp_path / "few", workers=1)
    statistics = [*manifest.statistics.mean, *manifest.statistics.std]
    counts = [split.images for split in manifest.splits.values()]
    check("preparing", ledger.PREPARING, statistics, counts, [int(manifest.digest[:8], 16)])


def test_evaluation():
    from types import SimpleNamespace

    def predict(images):
        return images.float().flatten(1)[:, :12] / 40

    batches = [
        SimpleNamespace(
            images=torch.stack([picture(8, 8).roll(index + number, 2) for index in range(5)]),
            labels=torch.arange(5) + number,
            indices=torch.arange(5) + 5 * number,
        )
        for number in range(3)
    ]
    measured = evaluate_model(predict, batches, 12, torch.device("cpu"), lambda images: predict(images).flip(1))
    for name, value in measured.items():
        check(f"metric {name}", ledger.EVALUATION, [value])


def test_probing():
    """The classes that neighbours and the linear probe give to images of classes that overlap."""
    generator = np.random.Generator(np.random.Philox(key=7))
    labels = torch.arange(720) % 6
    rows = torch.from_numpy(generator.standard_normal((720, 8))).float() + 3 * torch.eye(8)[labels]
    rows[:, 7] = 2.0
    known, asked = slice(0, 240), slice(240, None)
    for measure in (nearest_neighbours, linear_probe):
        given = measure(rows[known], labels[known], rows[asked] * 1.5, 6)
        check(f"probing {measure.__name__}", ledger.PROBING, given, [(given == labels[asked]).sum().item()])


@pytest.mark.slow
def test_training(workplace):
    """A teacher and its student trained for two epochs: the loop, its optimizer and its measurements."""
    workplace.edit_recipe("ema: {decay: 0.9}\nmix: {mixup: 0.2, p: 0.5}\nclip_norm: 0.5")
    workplace.edit("teacher: big,", "teacher: big, teacher_norm: batch,")
    workplace.make("big")
    student = workplace.make("taught")
    history = [float(number) for row in (student / "history.csv").read_text().split()[1:] for number in row.split(",")]
    weights = read_safetensors(student / "weights.safetensors")
    check("engine: training", ledger.ENGINE, history, *(weights[name].double() for name in sorted(weights)))


@pytest.mark.slow
def test_importing(tmp_path):
    """Weights in a nest, under a wrapper's prefix and another code base's names."""
    torch.manual_seed(0)
    state = create_model("cifar_vgg8", 10).state_dict()
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "a.pth"
    )
    network = create_model("cifar_vgg8", 10)
    import_weights(network, str(tmp_path / "a.pth"), "cifar_vgg8")
    check("importing", ledger.IMPORTING, *(value.double() for value in network.state_dict().values()))
