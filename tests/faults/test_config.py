"""Broken configurations: `distillery check` refuses each in one line that says what is wrong."""

import pytest
import torch

FILES = {
    "page.yaml": """page:
  dataset: images
  seeds: [0, 1]
  runs:
    big: {model: cifar_resnet8, recipe: r}
    kd: {model: cifar_resnet8, recipe: r, teacher: big, objective: {ce: {}, kd: {}}}
    mgd: {model: cifar_resnet8, recipe: r, teacher: big, objective: {ce: {}, mgd: {loss_factor: 10}}}
    given: {model: cifar_resnet8, weights: given.pth, preprocess: {size: 16}}
  tables:
    all: {title: All, rows: [big, kd], columns: [top1, nll]}
""",
    "recipes/r.yaml": """epochs: 6
batch: 16
optimizer: {name: sgd, lr: 0.05, momentum: 0.9, weight_decay: 0.0001}
schedule: {name: constant}
preprocess: {size: 16}
augment: []
mix: null
""",
    "datasets.yaml": "images: {path: data, classes: 3}\n",
}

RECIPE, PAGE, DATA = "recipes/r.yaml", "page.yaml", "datasets.yaml"
SGD, CONSTANT, PLAIN, KD = (
    "{name: sgd, lr: 0.05, momentum: 0.9, weight_decay: 0.0001}",
    "{name: constant}",
    "augment: []",
    "kd: {}",
)
BIG, GIVEN = (
    "big: {model: cifar_resnet8, recipe: r}",
    "given: {model: cifar_resnet8, weights: given.pth, preprocess: {size: 16}}",
)

FAULTS = [
    # Numbers that are none.
    (RECIPE, "epochs: 6", "epochs: true", "epochs: true is not valid; expected a whole number"),
    (RECIPE, "epochs: 6", "epochs: 010", "r.yaml:1:9: 010 is not a plain finite number; write 10"),
    (RECIPE, "epochs: 6", "epochs: 1:30", "1:30 is not a plain finite number"),
    (RECIPE, "epochs: 6", "epochs: 1_0", "1_0 is not a plain finite number; write 10"),
    (RECIPE, "epochs: 6", "epochs: '6'", "epochs: '6' is not valid; expected a whole number; write it without quotes"),
    (RECIPE, "epochs: 6", "epochs: 6.0", "epochs: 6.0 is not valid; expected a whole number"),
    (RECIPE, "epochs: 6", "epochs: 6.5", "epochs: 6.5 is not valid; expected a whole number"),
    (RECIPE, "epochs: 6", "epochs: six", "epochs: 'six' is not valid; expected a whole number"),
    (RECIPE, "epochs: 6", "epochs: 0", "epochs: 0 is not valid; input should be greater than or equal to 1"),
    (RECIPE, "epochs: 6", "epochs: -1", "epochs: -1 is not valid"),
    (RECIPE, "epochs: 6", "epochs: 1000000000", "epochs: 1000000000 is not valid; input should be less than or equal"),
    (RECIPE, "epochs: 6", "epochs:", "epochs: null is not valid"),
    (RECIPE, "epochs: 6", "epochs: [6]", "epochs: [6] is not valid"),
    (RECIPE, "lr: 0.05", "lr: true", "optimizer.lr: true is not valid; expected a number"),
    (RECIPE, "lr: 0.05", "lr: .inf", ".inf is not a plain finite number"),
    (RECIPE, "lr: 0.05", "lr: .nan", ".nan is not a plain finite number"),
    (RECIPE, "lr: 0.05", "lr: 1e-3", "1e-3 is text in YAML and looks like a number; write 1.0e-3"),
    (RECIPE, "lr: 0.05", "lr: '0.05'", "lr: '0.05' is not valid; expected a number; write it without quotes"),
    (RECIPE, "lr: 0.05", "lr: 0", "lr: 0 is not valid; input should be greater than 0"),
    (RECIPE, "lr: 0.05", "lr: 1.0e+300", "lr: 1e+300 is not valid; input should be less than"),
    (RECIPE, "lr: 0.05", "lr: '0,05'", "lr: '0,05' is not valid; expected a number"),
    (RECIPE, "lr: 0.05", "lr: 5%", "lr: '5%' is not valid; expected a number"),
    (RECIPE, "momentum: 0.9", "momentum: 5", "momentum: 5 is not valid; input should be less than 1"),
    (RECIPE, "momentum: 0.9", "momentum: 1", "momentum: 1 is not valid"),
    (RECIPE, "momentum: 0.9", "momentum: 0, nesterov: true",
     "nesterov: true is not valid; it needs a `momentum` above 0"),
    (RECIPE, "momentum: 0.9", "nesterov: 1", "nesterov: 1 is not valid; expected true or false"),
    (RECIPE, "weight_decay: 0.0001", "weight_decay: .inf", ".inf is not a plain finite number"),
    (RECIPE, "weight_decay: 0.0001", "weight_decay: -1", "weight_decay: -1 is not valid"),
    (RECIPE, SGD, "{name: adamw, lr: 0.1, betas: [1, 0.9]}", "betas.0: 1 is not valid; input should be less than 1"),
    (RECIPE, SGD, "{name: adamw, lr: 0.1, betas: [0.9]}", "betas.1: missing"),
    (RECIPE, SGD, "{name: lamb, lr: 0.1, eps: 1.0e+300}", "eps: 1e+300 is not valid; expected finite numbers"),
    (RECIPE, SGD, "{name: lamb, lr: 0.1, epz: 0.1}", "epz"),
    (RECIPE, SGD, "{name: lamb, lr: 0.1, betas: [5, 0.9]}",
     "optimizer.betas: [5, 0.9] is not valid; input should be at least 0 and less than 1"),
    (RECIPE, SGD, "{name: lamb, lr: 0.1, betas: [0.9]}", "betas: [0.9] is not valid; expected a list of 2 numbers"),
    (RECIPE, SGD, "{name: lion, lr: 0.1, betas: 3}", "betas: 3 is not valid; expected a list of 2 numbers"),
    (RECIPE, SGD, "{name: sgdp, lr: 0.1, momentum: 5}", "momentum: 5 is not valid; input should be at least 0"),
    (RECIPE, SGD, "{name: rmsprop, lr: 0.1, alpha: 5}", "alpha: 5 is not valid"),
    (RECIPE, SGD, "{name: rmsprop, lr: 0.1, eps: true}", "eps: true is not valid; expected a number"),
    (RECIPE, SGD, "{name: adamp, lr: 0.1, nesterov: maybe}", 'nesterov: "maybe" is not valid; expected true or false'),
    (RECIPE, SGD, "{name: adamp, lr: 0.1, nesterov: 1}", "nesterov: 1 is not valid; expected true or false"),
    (RECIPE, SGD, "{name: adabelief, lr: 0.1, maximize: true}", "has no argument 'maximize'"),
    (RECIPE, "batch: 16", "batch: true", "batch: true is not valid; expected a whole number"),
    (RECIPE, "batch: 16", "batch: 1000000000", "batch: 1000000000 is not valid"),
    (RECIPE, "size: 16", "size: 1000000",
     "preprocess.size: 1000000 is not valid; input should be less than or equal to 4096"),
    (RECIPE, "size: 16", "size: 16, resize: 8", "resize: 8 is not valid; it is smaller than `size`, 16"),
    (RECIPE, "size: 16", "size: 16, resize: 100000", "resize: 100000 is not valid"),
    (RECIPE, "size: 16", "size: 16, normalize: {mean: [.nan, 0, 0], std: [1, 1, 1]}", ".nan is not a plain"),
    (RECIPE, "size: 16", "size: 16, normalize: {mean: [124, 116, 104], std: [1, 1, 1]}", "mean.0: 124 is not valid"),
    (RECIPE, "size: 16", "size: 16, normalize: {mean: [0, 0, 0], std: [0, 1, 1]}", "each `std` must be 0.001 or more"),
    (RECIPE, "size: 16", "size: 16, normalize: {mean: [0, 0, 0], std: [true, 1, 1]}", "std.0: true is not valid"),
    (RECIPE, "size: 16", "size: 16, normalize: {mean: [0, 0, 0], std: [1.0e-300, 1, 1]}", "each `std` must be 0.001"),
    (RECIPE, "mix: null", "mix: {mixup: .inf}", ".inf is not a plain finite number"),
    (RECIPE, "mix: null", "mix: {mixup: 1000000}", "mix.mixup: 1000000 is not valid"),
    (RECIPE, "mix: null", "mix: {mixup: true}", "mix.mixup: true is not valid"),
    (RECIPE, "mix: null", "mix: {p: 0.5}", "give `mixup`, `cutmix` or both"),
    (RECIPE, "mix: null", "mix: {mixup: 1, p: 0}", "mix.p: 0 is not valid; input should be greater than 0"),
    (RECIPE, "mix: null", "ema: {decay: 1}", "ema.decay: 1 is not valid; input should be less than 1"),
    (RECIPE, "mix: null", "ema: {decay: 1.5}", "ema.decay: 1.5 is not valid"),
    (RECIPE, "mix: null", "repeats: 0", "repeats: 0 is not valid"),
    (RECIPE, "mix: null", "clip_norm: -1", "clip_norm: -1 is not valid"),
    (RECIPE, "mix: null", "classifier_std: 0", "classifier_std: 0 is not valid"),
    (RECIPE, "mix: null", "deterministic: no thanks",
     "deterministic: 'no thanks' is not valid; expected true or false"),
    (RECIPE, "mix: null", "selection: first", "selection: 'first' is not valid; valid: best, last"),
    # Schedules that do not come to pass.
    (RECIPE, CONSTANT, "{name: step, drops: [3, 3]}", "`drops` must rise from one to the next"),
    (RECIPE, CONSTANT, "{name: step, drops: [4, 2]}", "`drops` must rise"),
    (RECIPE, CONSTANT, "{name: step, drops: [3, 6]}", "`drops` has 6, but 6 epochs, counted from 0, end with 5"),
    (RECIPE, CONSTANT, "{name: step, drops: [0]}", "drops.0: 0 is not valid"),
    (RECIPE, CONSTANT, "{name: step, drops: []}", "drops: [] is not valid"),
    (RECIPE, CONSTANT, "{name: step, drops: [true]}", "drops.0: true is not valid"),
    (RECIPE, CONSTANT, "{name: step}", "needs either `drops` or `every`"),
    (RECIPE, CONSTANT, "{name: step, every: 6}", "`every` is 6, and 6 epochs end before the first drop"),
    (RECIPE, CONSTANT, "{name: step, every: 2, ratio: 2}", "ratio: 2 is not valid"),
    (RECIPE, CONSTANT, "{name: cosine, min_lr: 0.1}", "`min_lr` is above the base rate `lr`, 0.05"),
    (RECIPE, CONSTANT, "{name: cosine, restart_every: 9}", "`restart_every` is more than all 6 epochs"),
    (RECIPE, CONSTANT, "{name: cosine, cooldown: -1}", "cooldown: -1 is not valid"),
    (RECIPE, CONSTANT, "{name: constant, warmup: {name: absolute, epochs: 2, lr: 1}}",
     "`warmup.lr` is above the base rate"),
    (RECIPE, CONSTANT, "{name: constant, warmup: {name: stepwise, epochs: 9}}", "`warmup.epochs` is more than all 6"),
    (RECIPE, CONSTANT, "{name: constant, warmup: {name: ratio, epochs: 2, start: 0}}", "start: 0 is not valid"),
    (RECIPE, CONSTANT, "{nam: constant}", "missing `name`; valid: constant, cosine, step"),
    # Augmentations that nobody means.
    (RECIPE, PLAIN, "augment: [{name: rand_augment, policy: rand-m99999999999}]", "'rand-m99999999999' is not valid"),
    (RECIPE, PLAIN, "augment: [{name: rand_augment, policy: rand-m15}]", "m is above mmax, 10"),
    (RECIPE, PLAIN, "augment: [{name: rand_augment, policy: rand-n0}]", "'rand-n0' is not valid"),
    (RECIPE, PLAIN, "augment: [{name: rand_augment, policy: rand-m5-m9}]", "is not valid; it names m twice"),
    (RECIPE, PLAIN, "augment: [{name: rotation, degrees: 1000}]", "degrees: 1000 is not valid"),
    (RECIPE, PLAIN, "augment: [{name: horizontal_flip, p: 1.5}]", "p: 1.5 is not valid"),
    (RECIPE, PLAIN, "augment: [{name: horizontal_flip, p: true}]", "p: true is not valid"),
    (RECIPE, PLAIN, "augment: [{name: random_crop, padding: 100000}]", "padding: 100000 is not valid"),
    (RECIPE, PLAIN, "augment: [{name: color_jitter, brightness: 1000}]", "brightness: 1000 is not valid"),
    (RECIPE, PLAIN, "augment: [{name: random_resized_crop, scale: [1, 0.1]}]", "the smaller comes first"),
    (RECIPE, PLAIN, "augment: [{name: random_resized_crop, ratio: [0, 1]}]", "ratio.0: 0 is not valid"),
    (RECIPE, PLAIN, "augment: {name: rotation}", "expected a list"),
    # Objectives.
    (PAGE, KD, "kd: {temperature: .inf}", ".inf is not a plain"),
    (PAGE, KD, "kd: {temperature: 0}", "kd.temperature: 0 is not valid"),
    (PAGE, KD, "kd: {weight: true}", "kd.weight: true is not valid; expected a number"),
    (PAGE, KD, "kd: {weight: -1}", "weight: -1 is not valid"),
    (PAGE, KD, "kd: {weight: {value: 1}}", "weight.warmup: missing"),
    (PAGE, "ce: {}, kd: {}", "ce: {weight: 0}, kd: {weight: 0}", "every weight is 0, so nothing would be trained"),
    (PAGE, "ce: {}, kd: {}", "ce: {weight: 0}, kd: {weight: {value: 0, warmup: 2}}", "every weight is 0"),
    (PAGE, "ce: {}, kd: {}", "ce: {label_smoothing: 1}, kd: {}", "label_smoothing: 1 is not valid"),
    (PAGE, "ce: {}, kd: {}", "", "an objective needs at least one term"),
    (PAGE, "loss_factor: 10", "ignore: [3]", "page.runs.mgd.objective.mgd.ignore: no stage 3; the networks have 3"),
    (PAGE, "loss_factor: 10", "ignore: [0, 1, 2]", "leaves no stage to learn from"),
    (PAGE, "loss_factor: 10", "ignore: [true]", "ignore.0: true is not valid"),
    (PAGE, "mgd: {loss_factor: 10}", "dist: {beta: 0, gamma: 0}", "give `beta` or `gamma` a weight above 0"),
    (PAGE, "mgd: {loss_factor: 10}", "dkd: {alpha: 0, beta: 0}", "give `alpha` or `beta` a weight above 0"),
    (PAGE, "mgd: {loss_factor: 10}", "masked_generative: {alpha: 0}", "give `alpha` a weight above 0"),
    (PAGE, "mgd: {loss_factor: 10}", "kd: {}, uskd: {stage: 3}", "mgd.objective.uskd.stage: no stage 3; the networks"),
    (PAGE, "mgd: {loss_factor: 10}", "kd: {}, uskd: {alpha: 0, beta: 0, mu: 0}", "give `alpha` or `beta` or `mu` a"),
    (PAGE, "mgd: {loss_factor: 10}", "ofa: {stages: [3]}", "mgd.objective.ofa.stages: no stage 3; the student has 3"),
    (PAGE, "mgd: {loss_factor: 10}", "ofa: {eps: [1, 1]}", "ofa.eps: 2 values, but 3 stages and the logits need 4"),
    (PAGE, "mgd: {loss_factor: 10}", "crd: {negatives: 1000000000}", "crd.negatives: 1000000000 is not valid"),
    (PAGE, "objective: {ce: {}, mgd: {loss_factor: 10}}",
     "epochs: 1, objective: {kd: {weight: {value: 1, warmup: 9, from_zero: true}}}",
     "mgd.objective: every weight is 0 to the last epoch"),
    (PAGE, "mgd: {loss_factor: 10}", "rkd: {distance: 0, angle: 0}", "give `distance` or `angle` a weight above 0"),
    (PAGE, KD, "kd: {temperature: lerned}", "kd.temperature: 'lerned' is not valid; did you mean 'learned'?"),
    (PAGE, KD, "kd: {temperature: true}", "kd.temperature: true is not valid; expected a number"),
    (PAGE, KD, "kd: {temperature: '4'}", "temperature: '4' is not valid; expected a number; write it without quotes"),
    (PAGE, KD, "kd: {temperature: {span: 3}}", "kd.temperature.name: missing"),
    (PAGE, KD, "kd: {temperature: {name: learned, spam: 3}}", "kd.temperature.spam: unknown key 'spam'; did you mean"),
    (PAGE, KD, "kd: {temperature: {name: learned, span: 0}}", "kd.temperature.span: 0 is not valid"),
    (PAGE, KD, "kd: {standardize: 1}", "kd.standardize: 1 is not valid; expected true or false"),
    # Keys that nothing reads.
    (PAGE, GIVEN, GIVEN[:-1] + ", objective: {ce: {}}}", "given.objective: imported weights are not trained"),
    (PAGE, GIVEN, GIVEN[:-1] + ", seeds: [0, 1]}", "given.seeds: imported weights are not trained; remove this key"),
    (PAGE, GIVEN, GIVEN[:-1] + ", teacher: big}", "given.teacher: imported weights are not trained"),
    (PAGE, GIVEN, GIVEN[:-1] + ", teacher_norm: batch}", "given.teacher_norm: imported weights are not trained"),
    (PAGE, GIVEN, GIVEN[:-1] + ", epochs: 3}", "given.epochs: imported weights are not trained"),
    (PAGE, "given.pth", "''", "given.weights: '' is not valid; expected some text"),
    (PAGE, "given.pth", "~/nowhere.pth", "/nowhere.pth: no such file"),
    (PAGE, "given.pth", "https://host/given.pth", "'https://host/given.pth' is not valid; its bytes could"),
    (PAGE, "given.pth", "https://host/given.pth#sha256=0", "#sha256=0 is no checksum; get the checksum by"),
    (PAGE, "given.pth", f"'http://host/given.pth#sha256={64 * '0'}'", "only https:// is fetched"),
    (PAGE, "given.pth", f"'gs://host/given.pth#sha256={64 * '0'}'", "only https:// is fetched"),
    (PAGE, BIG, BIG[:-1] + ", teacher_norm: eval}", "big.teacher_norm: there is no `teacher`; remove this key"),
    (PAGE, BIG, BIG[:-1] + ", margin_source: teacher}", "big.margin_source: there is no `teacher`"),
    (PAGE, BIG, BIG[:-1] + ", epoch: 3}", "big.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
    # Networks that cannot be trained so.
    (PAGE, BIG, "big: {model: 'torchvision:resnet18', recipe: r, batch: 1}", "big.model 'torchvision:resnet18' cannot"),
    (PAGE, BIG, "big: {model: 'timm:vit_tiny_patch16_224', recipe: r}", "cannot take images of 16 x 16 pixels"),
    (PAGE, BIG, "big: {model: 'torchvision:googlenet', model_args: {aux_logits: true}, recipe: r, batch: 2}",
     "gives GoogLeNetOutputs in training mode"),
    # Names.
    (PAGE, "    big:", "    no:", "key `no` means false in YAML, not text; put it in quotes"),
    (PAGE, "    big:", "    yes:", "key `yes` means true in YAML"),
    (PAGE, "    big:", "    off:", "key `off` means false in YAML"),
    (PAGE, "    big:", "    null:", "key `null` is null in YAML"),
    (PAGE, "    big:", "    34:", "key `34` is a number in YAML"),
    (PAGE, "    big:", "    2024-01-01:", "key `2024-01-01` is a date in YAML"),
    (PAGE, "    big:", f"    {'b' * 300}:", "is not valid; string should have at most 250 characters"),
    (PAGE, "    big:", "    KD:", "differ in case only"),
    (PAGE, "    big:", "    'b ig':", "'b ig' is not a plain name"),
    (PAGE, "    big:", "    bïg:", "is not a plain name"),
    (PAGE, "    big:", "    -big:", "is not a plain name"),
    (PAGE, "    big:", "    .big:", "is not a plain name"),
    (PAGE, "    big:", "    'b`id`':", "is not a plain name"),
    (PAGE, "    big:", '    "b\\nid":', "page.runs.b\\nid: 'b\\nid' is not a plain name"),
    (PAGE, "teacher: big", "teacher: no", "teacher: false is not valid; expected text; put it in quotes (`no`"),
    (PAGE, "model: cifar_resnet8, recipe: r}", "model: 8, recipe: r}",
     "model: 8 is not valid; expected text; put it in quotes"),
    (PAGE, "dataset: images", "dataset: image", "no data set 'image'; did you mean 'images'?"),
    (PAGE, "dataset: images", "dataset: [images]", "dataset: ['images'] is not valid; expected text"),
    # Tables.
    (PAGE, "columns: [top1, nll]", "columns: []", "tables.all.columns: [] is not valid"),
    (PAGE, "columns: [top1, nll]", "column: [top1, nll]",
     "tables.all.column: unknown key 'column'; did you mean 'columns'?"),
    (PAGE, "columns: [top1, nll]", "title2: x", "tables.all.title2: unknown key 'title2'"),
    (PAGE, ", columns: [top1, nll]", "", "tables.all.columns: missing"),
    (PAGE, "    all:", f"    {'t' * 201}:", "string should have at most 200 characters"),
    (PAGE, "    all:", "    all: {rows: [big], columns: [top1]}\n    ALL:", "differ in case only"),
    (PAGE, "rows: [big, kd]", "rows: [big, yes]",
     "tables.all.rows: ['big', True] is not valid; true is no run; put it in quotes"),
    # Seeds.
    (PAGE, "seeds: [0, 1]", "seeds: [true]", "seeds.0: true is not valid; expected a whole number"),
    (PAGE, "seeds: [0, 1]", "seeds: [0, 0]", "a seed occurs twice"),
    (PAGE, "seeds: [0, 1]", "seeds: [-1]", "seeds.0: -1 is not valid"),
    (PAGE, "seeds: [0, 1]", "seeds: 3", "expected a list"),
    (PAGE, "seeds: [0, 1]", "seeds: [100000000000000000000]", "is not valid"),
    # Data sets.
    (DATA, "classes: 3", "classes: 1", "images.classes: 1 is not valid; input should be greater than or equal to 2"),
    (DATA, "classes: 3", "classes: true", "images.classes: true is not valid"),
    (DATA, "classes: 3", "holdout: 1", "holdout: 1 is not valid"),
    (DATA, "classes: 3", "holdout: .nan", ".nan is not a plain"),
    (DATA, "classes: 3", "images: {train: 0}", "images.train: 0 is not valid"),
    (DATA, "classes: 3", "images: {test: 3}", "is not valid"),
    (DATA, "classes: 3", "embed: 0", "embed: 0 is not valid; expected true or false"),
    (DATA, "path: data", "path: ''", "path: '' is not valid; expected some text"),
    (DATA, "path: data", "path: 3", "path: 3 is not valid; expected text"),
    (DATA, "path: data", "path: 'hub:'", "`hub:` must be followed by the name of a data set"),
    (DATA, "path: data", "path: 'hub:@main'", "`hub:` must be followed by the name of a data set"),
    (DATA, "classes: 3", "label: fine", "`label` names a column of the hub"),
    (DATA, "images:", "imag es:", "no data set 'images'"),
    (DATA, "images:", "IMAGES: {path: d}\nimages:", "'IMAGES' and 'images' differ in case only"),
    (DATA, "classes: 3", "download: {url: 'ftp://x/y', checksum: 'md5:0'}", "download.url"),
    (DATA, "classes: 3", "download: {url: 'https://x/y', checksum: 'crc:0'}", "download.checksum"),
    # YAML.
    (PAGE, "page:\n", "page: &x\n  <<: *x\n", "*x stands inside of itself"),
    (PAGE, "  tables:", "  x: [\n  tables:", "page.yaml:"),
    (PAGE, "seeds: [0, 1]", "seeds: !!python/tuple [0]", "is not supported"),
    (PAGE, "seeds: [0, 1]", "seeds: [0, 1]\n\tx: 1", "page.yaml:"),
    (PAGE, "page:\n", "page: {}\nother:\n", "expected one top-level key"),
    (RECIPE, "epochs: 6", "epochs: 6\nepochs: 7", "r.yaml:2:1: key 'epochs' occurs twice"),
]  # fmt: skip


@pytest.fixture
def config(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    torch.save({"only": torch.zeros(1)}, tmp_path / "given.pth")
    return tmp_path / "config"


@pytest.mark.parametrize(("file", "old", "new", "words"), FAULTS)
def test_a_broken_configuration_is_refused_in_one_line(config, refused, file, old, new, words):
    text = (config / file).read_text()
    assert old in text
    (config / file).write_text(text.replace(old, new, 1))
    line = refused("check", "config/page.yaml")
    assert words in line
    assert "config/" in line
    assert sorted(path.name for path in config.parent.iterdir()) == ["config", "given.pth"]


def test_the_configuration_that_these_break_is_whole(config, capsys):
    from distillery.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["check", "config/page.yaml"])
    assert ended.value.code == 0
    assert "mgd" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint-seconds", "-5"], "'--checkpoint-seconds': Input should be greater than or equal to 0"),
        (["--checkpoint-seconds", "nan"], "'--checkpoint-seconds'"),
        (["--checkpoint-seconds", "inf"], "inf is not a finite number"),
        (["--checkpoint-seconds", "soon"], "'--checkpoint-seconds'"),
        (["--workers", "-1"], "'--workers'"),
        (["--workers", "1e3"], "'--workers'"),
        (["--workers", "1000000"], "'--workers'"),
        (["--threads", "0"], "'--threads'"),
        (["--device-batch", "0"], "'--device-batch'"),
        (["--seed", "-1"], "'--seed'"),
        (["--seed", "7"], "no seed 7; valid: 0, 1"),
        (["--loader", "fast"], "'--loader'"),
    ],
)
def test_a_number_of_the_command_line_has_its_range(config, refused, arguments, words):
    assert words in refused("train", "config/page.yaml", "big", *arguments)
