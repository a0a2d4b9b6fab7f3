"""Settings of timm and torchdistill as recipes: what comes along, what does not, and what is refused."""

import os
from pathlib import Path

import pytest
import yaml

from distillery.cli import main
from distillery.experiment import load_experiment
from distillery.experiment.loading import load_recipe

# As timm's train.py writes them: every argument, defaults too.
TIMM = """
aa: rand-m9-mstd0.5-inc1
amp: true
amp_dtype: bfloat16
amp_impl: native
aug_repeats: 0
aug_splits: 0
batch_size: 256
bce_loss: false
bce_target_thresh: null
channels_last: true
clip_grad: 1.0
clip_mode: norm
color_jitter: 0.4
cooldown_epochs: 10
crop_pct: 0.95
cutmix: 1.0
data_dir: /data/imagenet
decay_epochs: 90
decay_rate: 0.1
drop: 0.0
drop_path: 0.05
epochs: 300
grad_accum_steps: 2
head_init_scale: null
hflip: 0.5
img_size: null
initial_checkpoint: ''
interpolation: ''
log_interval: 50
lr: 0.005
lr_base: 0.1
lr_base_scale: ''
lr_base_size: 256
lr_cycle_limit: 1
lr_k_decay: 1.0
lr_noise: null
lr_noise_pct: 0.67
mean: null
min_lr: 0
mixup: 0.2
mixup_mode: batch
mixup_off_epoch: 0
mixup_prob: 1.0
mixup_switch_prob: 0.5
model: resnet26
model_ema: true
model_ema_decay: 0.9999
model_kwargs: {}
momentum: 0.9
num_classes: 1000
opt: lamb
opt_betas: null
opt_eps: null
output: ''
pretrained: false
ratio:
- 0.75
- 1.3333333333333333
recount: 1
remode: pixel
reprob: 0.25
scale:
- 0.08
- 1.0
sched: cosine
sched_on_updates: true
seed: 42
smoothing: 0.1
std: null
sync_bn: false
train_interpolation: bicubic
vflip: 0.0
warmup_epochs: 5
warmup_lr: 1.0e-05
warmup_prefix: false
weight_decay: 0.02
workers: 8
"""

TORCHDISTILL = """
datasets:
  ilsvrc2012:
    name: &dataset_name 'ilsvrc2012'
    key: 'ImageFolder'
    root: &root_dir !join ['~/dataset/', *dataset_name]
    splits:
      train:
        dataset_id: &train !join [*dataset_name, '/train']
        kwargs:
          root: !join [*root_dir, '/train']
          transform_configs:
            - key: 'RandomResizedCrop'
              kwargs: {size: &input_size [224, 224]}
            - key: 'RandomHorizontalFlip'
              kwargs: {p: 0.5}
            - &totensor
              key: 'ToTensor'
              kwargs:
            - &normalize
              key: 'Normalize'
              kwargs: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
            - key: 'ColorWarp'
      val:
        dataset_id: &val !join [*dataset_name, '/val']
        kwargs:
          root: !join [*root_dir, '/val']
          transform_configs:
            - key: 'Resize'
              kwargs: {size: 256}
            - key: 'CenterCrop'
              kwargs: {size: *input_size}
            - *totensor
            - *normalize
models:
  teacher_model:
    key: &teacher 'resnet34'
    kwargs: {num_classes: 1000, pretrained: True}
    experiment: !join [*dataset_name, '-', *teacher]
    ckpt: !join ['./ckpt/', *teacher, '.pt']
  student_model:
    key: 'resnet18'
    kwargs: {num_classes: 1000, pretrained: False}
    ckpt: './kd.pt'
train:
  log_freq: 1000
  num_epochs: 100
  train_data_loader: {dataset_id: *train, random_sample: True, batch_size: 256, num_workers: 16, cache_output: }
  val_data_loader: {dataset_id: *val, random_sample: False, batch_size: 128, num_workers: 16}
  teacher: {sequential: [], wrapper: 'DataParallel', requires_grad: False}
  student: {adaptations: , sequential: [], wrapper: 'DistributedDataParallel', requires_grad: True, frozen_modules: []}
  optimizer:
    key: 'SGD'
    kwargs: {lr: 0.1, momentum: 0.9, weight_decay: 0.0001}
  scheduler:
    key: 'MultiStepLR'
    kwargs: {milestones: [30, 60, 90], gamma: 0.1}
  criterion:
    key: 'WeightedSumLoss'
    kwargs:
      sub_terms:
        criterion:
          key: 'KDLoss'
          kwargs:
            student_module_path: '.'
            student_module_io: 'output'
            teacher_module_path: '.'
            teacher_module_io: 'output'
            temperature: 1.0
            alpha: 0.5
            reduction: 'batchmean'
        weight: 1.0
test:
  test_data_loader: {dataset_id: *val, batch_size: 1}
"""


@pytest.fixture
def adopt(tmp_path, monkeypatch, capsys):
    """Adopt a text; the lines that were printed. Nothing is written where it is refused."""
    monkeypatch.chdir(tmp_path)

    def call(text, *options, file="args.yaml", code=0):
        if text is not None:
            Path(file).write_text(text)
        before = sorted(Path().rglob("*"))
        with pytest.raises(SystemExit) as ended:
            main(["adopt", file, *options])
        said = capsys.readouterr()
        assert ended.value.code == code, said.err
        if not code:
            return said.out
        assert said.err.count("\n") == 1
        assert sorted(Path().rglob("*")) == before
        return said.err

    return call


def page_of(said):
    """A page with the runs that were printed, read as one."""
    runs = yaml.safe_load(said.partition("For `runs:` of a page:\n")[2])
    Path("config/datasets.yaml").write_text("raw: {path: data/raw}\n")
    Path("config/adopted.yaml").write_text(yaml.safe_dump({"adopted": {"dataset": "raw", "runs": runs}}))
    return load_experiment(Path("config/adopted.yaml"))


def test_timms_arguments_become_a_recipe_and_a_run(adopt):
    said = adopt(TIMM, "--name", "rsb", "--devices", "4")
    recipe, _ = load_recipe(Path("config"), "rsb", "test")
    assert recipe.model_dump(mode="json", exclude_defaults=True) == {
        "epochs": 300,
        "batch": 2048,
        "optimizer": {"name": "lamb", "lr": 0.005, "weight_decay": 0.02},
        "schedule": {
            "name": "cosine",
            "cooldown": 10,
            "warmup": {"name": "absolute", "epochs": 5, "lr": 1e-5},
        },
        "preprocess": {
            "size": 224,
            "resize": 235,
            "interpolation": "bicubic",
            "normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        },
        "augment": [
            {"name": "random_resized_crop", "interpolation": "bicubic"},
            {"name": "horizontal_flip"},
            {"name": "rand_augment", "policy": "rand-m9-mstd0.5-inc1"},
        ],
        "mix": {"mixup": 0.2, "cutmix": 1.0},
        "ema": {"decay": 0.9999},
        "precision": "bf16-mixed",
        "channels_last": True,
        "clip_norm": 1.0,
    }
    run = page_of(said).config.runs["rsb"]
    assert (run.model, run.model_args) == ("timm:resnet26", {"drop_path_rate": 0.05})
    assert run.objective.ce.label_smoothing == 0.1
    left = said.partition("Not carried over:\n")[2].partition("\n\n")[0].splitlines()
    assert left == [
        "  sched_on_updates: True: the rate changes once an epoch",
        "  reprob: 0.25: there is nothing like it here",
    ]
    assert "workers" in said.partition("without effect here:")[2]


def test_torchdistills_yaml_becomes_a_recipe_a_student_and_its_teacher(adopt):
    said = adopt(TORCHDISTILL, file="kd-resnet18.yaml")
    recipe, _ = load_recipe(Path("config"), "kd-resnet18", "test")
    assert recipe.model_dump(mode="json", exclude_defaults=True) == {
        "epochs": 100,
        "batch": 256,
        "optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 1e-4},
        "schedule": {"name": "step", "drops": [30, 60, 90]},
        "preprocess": {
            "size": 224,
            "resize": 256,
            "normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        },
        "augment": [{"name": "random_resized_crop"}, {"name": "horizontal_flip"}],
    }
    experiment = page_of(said)
    student, teacher = experiment.config.runs["kd-resnet18"], experiment.config.runs["teacher"]
    assert (student.model, student.teacher) == ("torchvision:resnet18", "teacher")
    assert (teacher.model, teacher.weights) == ("torchvision:resnet34", "torchvision:IMAGENET1K_V1")
    assert (student.objective.ce.weight, student.objective.kd.weight, student.objective.kd.temperature) == (0.5, 0.5, 1)
    left = said.partition("Not carried over:\n")[2].partition("\n\n")[0]
    assert left.splitlines() == [
        "  datasets.ilsvrc2012.splits.train.kwargs.transform_configs.ColorWarp: there is nothing like it here"
    ]
    assert "on one device" in said


def test_named_terms_of_torchdistill_keep_their_weights_and_unknown_ones_are_named(adopt):
    terms = """    kwargs:
      sub_terms:
        ce: {criterion: {key: CrossEntropyLoss, kwargs: {reduction: mean}}, weight: 1.0}
        crd:
          criterion: {key: CRDLoss, kwargs: {temperature: 0.07, num_negative_samples: 512, num_samples: 9}}
          weight: 0.8
        odd: {criterion: {key: OddLoss, kwargs: {tau: 3}}, weight: 2.0}
test:
"""
    start, end = TORCHDISTILL.index("    kwargs:\n      sub_terms"), TORCHDISTILL.index("test:\n") + 6
    said = adopt(TORCHDISTILL[:start] + terms + TORCHDISTILL[end:], "--name", "x")
    objective = page_of(said).config.runs["x"].objective
    assert (objective.ce.weight, objective.crd.weight, objective.crd.negatives) == (1, 0.8, 512)
    left = said.partition("Not carried over:\n")[2]
    assert "OddLoss: no term that is known to be the same" in left
    assert "num_samples: 9: CRDLoss has no such option here" in left


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("flux: 3\nwarp: [1, 2]\n", "  flux: 3: unknown key 'flux'\n  warp: [1, 2]: unknown key 'warp'\n"),
        ("bce_loss: true\n", "  bce_loss: True: there is nothing like it here"),
        ("vflip: 0.5\n", "  vflip: 0.5: there is nothing like it here"),
        ("aa: augmix-m5\n", "  aa: augmix-m5: of timm's policies there is rand"),
        ("sched: poly\n", "  sched: poly: a recipe has steps, cosines and a constant rate; written as constant"),
        ("clip_grad: 0.1\nclip_mode: agc\n", "  clip_mode: agc: gradients are clipped by their norm alone"),
        ("interpolation: lanczos\n", "  interpolation: lanczos: there is nearest, bilinear and bicubic"),
        ("mixup: 0.1\nmixup_mode: elem\n", "  mixup_mode: elem: one draw mixes a whole batch"),
    ],
)
def test_each_key_that_stays_behind_is_named(adopt, more, line):
    said = adopt(f"model: resnet18\nepochs: 10\n{more}")
    assert line in said.partition("Not carried over:\n")[2]
    assert page_of(said)


def test_timms_base_rate_its_sgd_and_its_pretrained_weights(adopt):
    said = adopt(
        "model: resnet50.a1_in1k\nepochs: 100\nbatch_size: 512\nopt: sgd\npretrained: true\nsched: step\n",
        "--name",
        "x",
    )
    recipe, _ = load_recipe(Path("config"), "x", "test")
    assert recipe.optimizer.model_dump() == {"name": "nesterov", "lr": 0.2, "weight_decay": 2e-5, "momentum": 0.9}
    assert (recipe.schedule.name, recipe.schedule.every) == ("step", 90)
    assert page_of(said).config.runs["x"].weights == "timm:a1_in1k"
    assert "lr: 0.2, made of lr_base 0.1 for a batch of 512" in said


@pytest.mark.parametrize(
    ("more", "name", "drops"),
    [
        ("sched: step\n", "constant", None),
        ("sched: multistep\n", "constant", None),
        ("sched: multistep\ndecay_milestones: [10, 15, 30]\n", "step", (10, 15)),
    ],
)
def test_drops_after_the_end_are_none(adopt, more, name, drops):
    said = adopt(f"model: resnet18\nepochs: 20\n{more}", "--name", "x")
    schedule = load_recipe(Path("config"), "x", "test")[0].schedule
    assert (schedule.name, getattr(schedule, "drops", None)) == (name, drops)
    assert ("no drop comes within 20 epochs" in said) == (drops is None)


def test_timms_distillation_has_a_teacher(adopt):
    said = adopt("model: resnet18\nepochs: 10\nkd_model_name: resnet50.a1_in1k\nkd_temperature: 2.0\n", "--name", "x")
    runs = page_of(said).config.runs
    assert (runs["teacher"].weights, runs["x"].teacher, runs["x"].objective.kd.temperature) == (
        "timm:a1_in1k",
        "teacher",
        2,
    )


def test_the_name_is_the_folders_or_the_files(adopt):
    Path("20260101-resnet 18").mkdir()
    adopt("model: resnet18\nepochs: 10\n", file="20260101-resnet 18/args.yaml")
    assert Path("config/recipes/20260101-resnet-18.yaml").is_file()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model: resnet18\n", "is neither timm's args.yaml (with `model` and `epochs`) nor a YAML of torchdistill"),
        ("- a\n", "expected a mapping of keys"),
        ("model: resnet18\nepochs: many\n", "epochs: 'many' is not valid; expected a whole number"),
        ("model: resnet18\nepochs: 0\n", "epochs: 0 is not valid"),
        ("model: resnet1818\nepochs: 2\n", "model: no model 'timm:resnet1818'"),
        ("model: resnet18\nepochs: 2\nopt: sdg\n", "opt: timm has no optimizer 'sdg'"),
        ("model: resnet18\nepochs: 20\nscale: [0.5, 0.1]\n", "the smaller comes first"),
        ("model: resnet18\nepochs: !!python/object/apply:os.system [ls]\n", "python/object/apply:os.system' is not"),
        ("models: !import_call {key: os.getcwd}\ntrain: {}\n", "the tag '!import_call' is not supported"),
        ("models: {}\ntrain: {num_epochs: !join [[1], [2]]}\n", "!join takes a list of words"),
        ("models: {}\ntrain: {stage1: {}, stage2: {}}\n", "train.stage1: a training of several stages"),
        ("models: {}\ntrain: {}\n", "train.num_epochs: missing; a recipe needs it"),
        ("models: []\ntrain: {num_epochs: 2}\n", "missing; a recipe needs it"),
        (f"{BOMB}model: resnet18\nepochs: 2\n", "more than 100,000 values"),
        (f"word: &w {'x' * 2000}\nmodels: !join [*w, *w, *w, *w, *w, *w]\ntrain: {{}}\n", "more than 10,000 letters"),
        ("model: resnet18\nmodel: resnet34\nepochs: 2\n", "key 'model' occurs twice"),
        ("model: resnet18\nepochs: 2\nlr: 1e-3\n", "1e-3 is text in YAML and looks like a number"),
        ("[" * 1000, "nested too deeply"),
    ],
)
def test_what_makes_no_recipe_or_is_hostile_is_one_line(adopt, text, line):
    assert line in adopt(text, code=2)


def test_a_pipe_is_not_waited_for_and_a_missing_file_is_named(adopt):
    os.mkfifo("pipe.yaml")
    assert "it is a pipe, not a file" in adopt(None, file="pipe.yaml", code=2)
    assert "nowhere.yaml: cannot be read: No such file" in adopt(None, file="nowhere.yaml", code=2)


def test_a_recipe_that_is_there_is_kept(adopt):
    adopt(TIMM, "--name", "x")
    assert "config/recipes/x.yaml: is there already; give another --name" in adopt(TIMM, "--name", "x", code=2)
    assert "--name: '../x' cannot name a recipe" in adopt(TIMM, "--name", "../x", code=2)
