"""torchdistill's YAML of one training stage: an image classifier's data, networks, optimizer and criterion."""

from pathlib import Path
from typing import Any

from distillery.adopt.adopted import Adopted, Settings, shown, steps
from distillery.errors import UserError
from distillery.models.registry import library_of

# Of the machine, or what torchdistill does in its own way.
MACHINE = (
    "log_freq", "num_workers", "pin_memory", "cache_output", "collate_fn", "random_sample", "wrapper",
    "find_unused_parameters", "auxiliary_model_wrapper", "requires_grad", "forward_proc", "filters_params", "sampler",
    "experiment", "log_config", "dst_ckpt",
)  # fmt: skip
# Their names of terms, ours, and ours for their options.
TERMS: dict[str, tuple[str, dict[str, str]]] = {
    "CrossEntropyLoss": ("ce", {"label_smoothing": "label_smoothing"}),
    "KDLoss": ("kd", {"temperature": "temperature"}),
    "CRDLoss": ("crd", {"num_negative_samples": "negatives", "temperature": "temperature", "feature_dim": "features",
                        "momentum": "momentum"}),
    "PKTLoss": ("pkt", {}),
    "DISTLoss": ("dist", {"beta": "beta", "gamma": "gamma", "tau": "temperature"}),
    "SPKDLoss": ("sp", {}),
    "SRDLoss": ("srrl", {}),
    "CCKDLoss": ("cc", {}),
    "RKDLoss": ("rkd", {"dist_factor": "distance", "angle_factor": "angle"}),
    "ATLoss": ("at", {}),
}  # fmt: skip
# Settings of a criterion that say where in a network it looks, which is planned here.
PLACES = (
    "student_module_path",
    "student_module_io",
    "teacher_module_path",
    "teacher_module_io",
    "reduction",
    "uses_label",
)


def adopt_torchdistill(given: dict[str, Any], file: Path, name: str, devices: int) -> Adopted:
    """Turn a YAML of torchdistill into a recipe and its runs.

    Raises:
        UserError: it trains in several stages, or lacks what a recipe needs.
    """
    adopted = Adopted()
    whole = Settings(given, file, adopted)
    train = whole.block("train")
    stages = [key for key in train.given if key.startswith("stage")]
    if stages:
        raise UserError(
            f"{file}: train.{stages[0]}: a training of several stages; adopt one stage, as a file of its own"
        )
    recipe: dict[str, Any] = {"epochs": train.take("num_epochs", int, 0) or _missing(file, "train.num_epochs")}
    loader = train.block("train_data_loader")
    batch = _loader(loader, file) * devices
    recipe["batch"] = batch
    if devices == 1:
        adopted.assumed.append(f"batch: {batch}, as if on one device; give --devices N where it was another number")
    recipe["optimizer"] = _optimizer(train.block("optimizer"), file)
    recipe["schedule"] = _schedule(train.block("scheduler"), recipe["epochs"])
    _transforms(whole.block("datasets"), recipe, file)
    line = _networks(whole, adopted, name)
    _criterion(train.block("criterion"), adopted, line)
    for key in ("teacher", "student"):
        _side(train.block(key))
    train.leave("grad_accum_step", "the batch is global: multiply it", (1,))
    clip = train.take("max_grad_norm", float, 0.0)
    if clip:
        recipe["clip_norm"] = clip
    train.skip("val_data_loader", *MACHINE)
    train.end()
    whole.skip("test", "dependencies", *MACHINE)
    whole.end()
    adopted.recipe = recipe
    return adopted


def _missing(file: Path, key: str) -> Any:  # noqa: ANN401
    raise UserError(f"{file}: {key}: missing; a recipe needs it")


def _kwargs(block: Settings) -> Settings:
    """Options of a thing: `kwargs`, and `params` in older files."""
    return block.block("params" if "params" in block.given else "kwargs")


def _key(block: Settings) -> str:
    """A thing's name: `key`, and `type` or `name` in older files."""
    return next((block.take(word, str, "") for word in ("key", "type", "name") if block.given.get(word)), "")


def _loader(loader: Settings, file: Path) -> int:
    options = _kwargs(loader)
    batch = options.take("batch_size", int, 0) or loader.take("batch_size", int, 0)
    loader.skip("dataset_id", "key", *MACHINE)
    options.skip("shuffle", "drop_last", *MACHINE)
    loader.end()
    options.end()
    return batch or int(_missing(file, "train.train_data_loader.batch_size"))


def _optimizer(block: Settings, file: Path) -> dict[str, Any]:
    name, options = _key(block), _kwargs(block)
    rate, decay = options.take("lr", float, 0.0), options.take("weight_decay", float, 0.0)
    optimizer: dict[str, Any] = {"name": name.lower(), "lr": rate or _missing(file, "train.optimizer.kwargs.lr")}
    if name == "SGD":
        optimizer["momentum"] = options.take("momentum", float, 0.0)
        if options.take("nesterov", bool, False):
            optimizer["nesterov"] = True
    elif betas := options.take("betas", list, []):
        optimizer["betas"] = betas
    block.skip(*MACHINE)
    block.leave("grad_accum_step", "the batch is global: multiply it", (1,))
    block.leave("module_wise_configs", "all weights are trained alike")
    clip = block.take("max_grad_norm", float, 0.0)
    if clip:
        block.adopted.assumed.append(f"max_grad_norm {clip:g} stands under the optimizer; write clip_norm: {clip:g}")
    options.end()
    block.end()
    return optimizer | {"weight_decay": decay}


def _schedule(block: Settings, epochs: int) -> dict[str, Any]:
    name, options = _key(block), _kwargs(block)
    schedule: dict[str, Any] = {"name": "constant"}
    if name == "MultiStepLR":
        drops = options.take("milestones", list, [])
        schedule = steps(options, epochs, {"drops": drops}, options.take("gamma", float, 0.1))
    elif name == "StepLR":
        every = options.take("step_size", int, epochs)
        schedule = steps(options, epochs, {"every": every}, options.take("gamma", float, 0.1))
    elif name == "CosineAnnealingLR":
        schedule = {"name": "cosine", "min_lr": options.take("eta_min", float, 0.0)}
        options.leave("T_max", "the cosine ends with the run", (epochs,))
    elif name:
        block.lose("key", name, "no such schedule here; written as constant")
        options.given.clear()
    options.skip("last_epoch")
    block.skip("scheduling_step", *MACHINE)
    options.end()
    block.end()
    return schedule


def _transforms(datasets: Settings, recipe: dict[str, Any], file: Path) -> None:
    """Augmentation and preparation, from the first data set's training and validation splits."""
    names = list(datasets.given)
    if not names:
        _missing(file, "datasets")
    dataset = datasets.block(names[0])
    for other in names[1:]:
        datasets.leave(other, "a page has one data set")
    dataset.skip("name", "key", "type", "root", *MACHINE)
    splits = dataset.block("splits")
    size: int = 0
    resize: int | None = None
    statistics: dict[str, Any] | None = None
    augment: list[dict[str, Any]] = []
    for place, split in enumerate(list(splits.given)):
        block = splits.block(split)
        options = _kwargs(block)
        parts = options.take("transform_configs", list, []) or _old_transforms(options)
        for part in parts if place < 2 else ():
            if not isinstance(part, dict):
                raise UserError(f"{file}: {options.prefix}transform_configs: {part!r} is not valid; expected a mapping")
            one = Settings(part, file, datasets.adopted, f"{options.prefix}transform_configs.")
            name, settings = _key(one), _kwargs(one)
            given = settings.given.get("size")
            side: int = given[-1] if isinstance(given, list) and given else given or 0
            if name == "RandomResizedCrop" and place == 0:
                size = side or size
                augment.append({"name": "random_resized_crop"} | _taken(settings, "scale", "ratio"))
            elif name == "RandomCrop" and place == 0:
                size, padding = side or size, settings.take("padding", int, 0)
                if padding:
                    augment.append({"name": "random_crop", "padding": padding})
            elif name == "RandomHorizontalFlip" and place == 0:
                augment.append({"name": "horizontal_flip", "p": settings.take("p", float, 0.5)})
            elif name == "Normalize":
                statistics = statistics or _taken(settings, "mean", "std")
            elif name == "Resize":
                resize = side if place == 1 else resize
            elif name == "CenterCrop":
                size = size or side
            elif name not in ("ToTensor", "PILToTensor", "ConvertImageDtype"):
                datasets.adopted.left.append(f"{one.prefix}{name}: there is nothing like it here")
            settings.skip("size", "mean", "std", *MACHINE)
            settings.end()
        options.skip("root", "train", "download", "transform", "split")
        block.skip("dataset_id", "key", *MACHINE)
        options.end()
        block.end()
    dataset.end()
    if not size:
        side = {"mnist": 28}.get(names[0], 32 if "cifar" in names[0].lower() else 224)
        datasets.adopted.assumed.append(f"preprocess.size: {side}; the file names none")
        size = side
    recipe["preprocess"] = {"size": size} | ({"resize": max(resize, size)} if resize else {})
    if statistics:
        recipe["preprocess"]["normalize"] = statistics
    recipe["augment"] = augment


def _old_transforms(options: Settings) -> list[Any]:
    """Transforms as older files have them: `transform_params`."""
    parts: list[Any] = options.take("transform_params", list, [])
    return parts


def _taken(settings: Settings, *keys: str) -> dict[str, Any]:
    return {key: value for key in keys if (value := settings.take(key, list, []))}


def _networks(whole: Settings, adopted: Adopted, name: str) -> dict[str, Any]:
    models = whole.block("models")
    line: dict[str, Any] = {"recipe": name}
    for role in ("model", "student_model", "teacher_model"):
        if role not in models.given:
            continue
        block = models.block(role)
        model, options = _key(block), _kwargs(block)
        pretrained, weights = options.take("pretrained", bool, False), options.take("weights", str, "")
        options.skip("num_classes", "progress")
        arguments = {
            key: options.take(key, type(value), value)
            for key, value in list(options.given.items())
            if isinstance(value, (bool, int, float, str))
        }
        options.end()
        source, file = block.take("src_ckpt", str, ""), block.take("ckpt", str, "")
        block.leave("repo_or_dir", "write a plugin that builds the network")
        block.skip(*MACHINE)
        block.end()
        run: dict[str, Any] = {"model": _model_name(model, adopted)} | ({"model_args": arguments} if arguments else {})
        if role == "teacher_model":
            adopted.runs["teacher"] = run | {"weights": _weights(source or file, pretrained, weights, model)}
        else:
            line = run | line
            if pretrained or weights or source:
                line["weights"] = _weights(source, pretrained, weights, model)
    models.end()
    if "model" not in line:
        raise UserError(f"{whole.where}: models: neither `student_model` nor `model`")
    adopted.runs[name] = line
    return line


def _model_name(model: str, adopted: Adopted) -> str:
    """Their name of a network where torchvision has it."""
    if library_of(f"torchvision:{model}") == "torchvision":
        return f"torchvision:{model}"
    ours = {"resnet": "cifar_resnet", "wide_resnet": "cifar_wrn_", "densenet": "cifar_densenet"}
    hint = next((f", perhaps {word}..." for start, word in ours.items() if model.startswith(start)), "")
    adopted.left.append(f"models: {model!r} is no network of torchvision; name one of docs/models.md{hint}")
    return model


def _weights(file: str, pretrained: bool, tag: str, model: str) -> str:
    return f"torchvision:{tag or 'IMAGENET1K_V1'}" if pretrained or tag else file or f"{model}.pt"


def _criterion(block: Settings, adopted: Adopted, line: dict[str, Any]) -> None:
    """The sum of terms; KDLoss of torchdistill has the labels in itself."""
    name, options = _key(block), _kwargs(block)
    terms: dict[str, Any] = {}
    if name == "WeightedSumLoss":
        block_of_terms = options.block("sub_terms")
        # Of one term alone, some files leave the name out.
        alone = "key" in (block_of_terms.given.get("criterion") or {})
        for term in ["criterion"] if alone else list(block_of_terms.given):
            part = block_of_terms if alone else block_of_terms.block(term)
            weight = part.take("weight", float, 1.0)
            inner = part.block("criterion")
            _term(inner, weight, terms, adopted)
            part.end()
        block_of_terms.end()
        options.leave("model_term", NEEDS_TERM)
    elif name:
        _term(block, 1.0, terms, adopted, options)
    block.skip("sub_terms", *MACHINE)
    block.end()
    options.end()
    if not terms:
        adopted.assumed.append("objective: ce; none of the criterion's terms came along")
    line["objective"] = terms or {"ce": {}}
    if "teacher" in adopted.runs and set(line["objective"]) - {"ce"}:
        line["teacher"] = "teacher"
    else:
        adopted.runs.pop("teacher", None)


NEEDS_TERM = "losses that a model makes itself have no counterpart"


def _term(
    block: Settings, weight: float, terms: dict[str, Any], adopted: Adopted, options: Settings | None = None
) -> None:
    name = _key(block)
    options = _kwargs(block) if options is None else options
    options.skip(*PLACES)
    if name not in TERMS:
        block.lose("key", name, "no term that is known to be the same; see docs/methods.md")
        options.given.clear()
        return
    ours, words = TERMS[name]
    keys = {
        mine: value
        for theirs, mine in words.items()
        if isinstance(value := options.given.get(theirs), (int, float)) and not isinstance(value, bool)
    }
    for theirs, mine in words.items():
        if mine in keys:
            options.take(theirs, type(options.given[theirs]), options.given[theirs])
    if name == "KDLoss" and isinstance(alpha := options.given.get("alpha"), (int, float)) and 0 <= alpha <= 1:
        # alpha x CE + (1 - alpha) x T^2 x KL, which is `kd` here.
        options.take("alpha", float, 1.0)
        terms["ce"] = {"weight": round(weight * alpha, 9)}
        weight = round(weight * (1 - alpha), 9)
    elif name not in ("KDLoss", "CrossEntropyLoss"):
        adopted.assumed.append(
            f"objective.{ours}: for their {name}; it looks where docs/methods.md says, and their mean may be another"
        )
    terms[ours] = keys if weight == 1 else {"weight": weight, **keys}
    if block.prefix.endswith("criterion."):
        block.end()
    for key, value in options.given.items():
        if isinstance(value, (dict, list)) or value is not None:
            adopted.left.append(f"{options.prefix}{key}: {shown(value)}: {name} has no such option here")
    options.given.clear()


def _side(block: Settings) -> None:
    """How a network is wrapped and which parts of it run; features are tapped without any of it."""
    block.leave("frozen_modules", "all weights of a student are trained")
    block.leave("adaptations", "a network is taken as it is")
    block.leave("auxiliary_model_wrapper", "terms bring their own connectors")
    block.skip("sequential", "forward_hook", "forward_proc", "key", *MACHINE)
    block.end()
