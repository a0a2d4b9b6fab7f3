"""timm's args.yaml, which its train.py writes beside a run's checkpoints."""

import math
from pathlib import Path
from typing import Any

from distillery.adopt.adopted import Adopted, Settings, steps
from distillery.errors import UserError
from distillery.models.registry import explain_unknown, library_of

# Where a run reads and writes, how it is watched, and on what it runs.
MACHINE = (
    "data_dir", "dataset", "dataset_download", "dataset_trust_remote_code", "train_split", "val_split",
    "train_num_samples", "val_num_samples", "class_map", "input_img_mode", "input_key", "target_key",
    "validation_batch_size", "device", "device_modules", "fuser", "torchscript", "torchcompile", "torchcompile_mode",
    "grad_checkpointing", "fast_norm", "workers", "worker_seeding", "log_interval", "recovery_interval",
    "checkpoint_hist", "save_images", "pin_mem", "no_prefetcher", "output", "experiment", "eval_metric", "tta",
    "local_rank", "use_multi_epochs_loader", "log_wandb", "wandb_project", "wandb_tags", "wandb_resume_id", "rank",
    "world_size", "distributed", "synchronize_step", "no_ddp_bb", "dist_bn", "dist_backend", "model_ema_force_cpu",
    "no_resume_opt", "start_epoch", "config", "log_level",
)  # fmt: skip
NO_SUCH = "there is nothing like it here"
# Keys without a counterpart, with the values that mean nothing.
LEFT: dict[str, tuple[Any, ...]] = {
    "vflip": (0, 0.0), "color_jitter_prob": (), "gaussian_blur_prob": (), "aug_splits": (0,), "jsd_loss": (),
    "bce_loss": (), "bce_sum": (), "bce_target_thresh": (), "bce_pos_weight": (), "reprob": (0, 0.0), "resplit": (),
    "cutmix_minmax": (), "mixup_off_epoch": (0,), "drop_connect": (0, 0.0), "drop_block": (0, 0.0),
    "layer_decay": (1, 1.0), "layer_decay_min_scale": (0, 0.0), "layer_decay_no_opt_scale": (), "lr_noise": (),
    "lr_cycle_mul": (1, 1.0), "lr_cycle_decay": (1, 1.0), "lr_cycle_limit": (1,), "lr_k_decay": (1, 1.0),
    "epoch_repeats": (0, 0.0), "split_bn": (), "bn_momentum": (), "bn_eps": (), "gp": (), "head_init_scale": (),
    "head_init_bias": (), "opt_kwargs": (), "train_crop_mode": ("rrc",), "crop_mode": ("center",), "in_chans": (3,),
    "model_ema_warmup": (), "resume": (), "patience_epochs": (10,), "naflex_loader": (), "model_dtype": ("float32",),
    "caution": (), "corrected_weight_decay": (), "amp_impl": ("native",), "opt_foreach": (),
}  # fmt: skip
# What says how much of something, or how.
DEPENDENT = {
    "reprob": ("remode", "recount"),
    "lr_noise": ("lr_noise_pct", "lr_noise_std"),
    "naflex_loader": ("naflex_train_seq_lens", "naflex_max_seq_len", "naflex_patch_sizes", "naflex_patch_size_probs",
                      "naflex_loss_scale"),
}  # fmt: skip


def adopt_timm(given: dict[str, Any], file: Path, name: str, devices: int) -> Adopted:
    """Turn timm's arguments into a recipe and a run.

    Raises:
        UserError: a value is of the wrong kind, or the network is unknown.
    """
    adopted = Adopted()
    args = Settings(given, file, adopted)
    line = _network(args, name)
    batch = args.take("batch_size", int, 128) * args.take("grad_accum_steps", int, 1) * devices
    recipe: dict[str, Any] = {"epochs": args.take("epochs", int, 300), "batch": batch}
    if devices == 1:
        adopted.assumed.append(f"batch: {batch}, as if on one device; give --devices N where it was another number")
    recipe["optimizer"] = _optimizer(args, batch)
    recipe["schedule"] = _schedule(args, recipe["epochs"])
    recipe["preprocess"] = _preprocess(args, given["model"])
    recipe["augment"] = _augment(args)
    _mix(args, recipe, line)
    _rest(args, recipe)
    _teacher(args, adopted, line)
    for key, neutral in LEFT.items():
        args.leave(key, NO_SUCH, neutral)
        args.skip(*DEPENDENT.get(key, ()))
    args.skip(*MACHINE)
    args.end()
    adopted.recipe = recipe
    adopted.runs[name] = line
    return adopted


def _network(args: Settings, name: str) -> dict[str, Any]:
    model, _, tag = args.take("model", str, "").removeprefix("timm/").partition(".")
    if library_of(f"timm:{model}") is None:
        raise UserError(f"{args.where}: model: {explain_unknown(f'timm:{model}')}")
    arguments = {
        **args.take("model_kwargs", dict, {}),
        **{
            argument: value
            for key, argument in (("drop", "drop_rate"), ("drop_path", "drop_path_rate"))
            if (value := args.take(key, float, 0.0))
        },
    }
    line: dict[str, Any] = {"model": f"timm:{model}", "recipe": name}
    if arguments:
        line["model_args"] = arguments
    started = args.take("initial_checkpoint", str, "")
    if args.take("pretrained", bool, False):
        line["weights"] = f"timm:{tag or _default_tag(model)}"
        line["new_classifier"] = True
        args.adopted.assumed.append(
            "new_classifier: true: the last layer is new; remove it where the data set has the weights' own classes"
        )
    elif started:
        line["weights"] = started
    if args.given.pop("num_classes", None) is not None:
        args.adopted.without_effect.append("num_classes (the data set says it)")
    args.leave("pretrained_path", "name the file as `weights`")
    return line


def _default_tag(model: str) -> str:
    import timm

    config = timm.models.get_pretrained_cfg(model)
    return str(config.tag) if config is not None and config.tag else "default"


def _optimizer(args: Settings, batch: int) -> dict[str, Any]:
    from timm.optim import get_optimizer_info  # type: ignore[attr-defined]

    name, rate = args.take("opt", str, "sgd").lower(), args.take("lr", float, 0.0)
    base, base_size = args.take("lr_base", float, 0.1), args.take("lr_base_size", int, 256)
    scale = args.take("lr_base_scale", str, "")
    if not rate:
        adaptive = any(word in name for word in ("ada", "lamb"))
        ratio = batch / base_size
        rate = base * (math.sqrt(ratio) if scale == "sqrt" or (not scale and adaptive) else ratio)
        args.adopted.assumed.append(f"lr: {rate:g}, made of lr_base {base:g} for a batch of {batch}, as timm does")
    else:
        args.idle("lr_base", "lr_base_size", "lr_base_scale")
    optimizer: dict[str, Any] = {"name": name, "lr": rate}
    decay = args.take("weight_decay", float, 2e-5)
    momentum, eps, betas = (
        args.take("momentum", float, 0.9),
        args.take("opt_eps", float, -1.0),
        args.take("opt_betas", list, []),
    )
    try:
        known = get_optimizer_info(name)
    except ValueError:
        raise UserError(f"{args.where}: opt: timm has no optimizer {name!r}") from None
    if name == "sgd":
        # The recipe's own `sgd` decays biases and norms too; timm's does not, and is with momentum Nesterov's.
        optimizer["name"] = "nesterov"
    options: dict[str, tuple[bool, Any]] = {
        "momentum": (known.has_momentum, momentum),
        "eps": (known.has_eps and eps >= 0, eps),
    }
    options["betas"] = (bool(known.has_betas and betas), betas)
    for key, (has, value) in options.items():
        if has:
            optimizer[key] = value
        else:
            args.idle(key if key == "momentum" else f"opt_{key}")
    return optimizer | {"weight_decay": decay}


def _schedule(args: Settings, epochs: int) -> dict[str, Any]:
    kind = args.take("sched", str, "cosine")
    least, cooldown = args.take("min_lr", float, 0.0), args.take("cooldown_epochs", int, 0)
    every, drops = args.take("decay_epochs", float, 90.0), args.take("decay_milestones", list, [90, 180, 270])
    ratio = args.take("decay_rate", float, 0.1)
    warmup, first = args.take("warmup_epochs", int, 5), args.take("warmup_lr", float, 1e-5)
    used: tuple[str, ...] = ()
    schedule: dict[str, Any] = {"name": "constant"}
    if kind == "cosine":
        schedule, used = {"name": "cosine", "min_lr": least, "cooldown": cooldown}, ("min_lr", "cooldown_epochs")
    elif kind == "step" and every == int(every):
        schedule, used = steps(args, epochs, {"every": int(every)}, ratio), ("decay_epochs", "decay_rate")
    elif kind == "multistep":
        schedule, used = steps(args, epochs, {"drops": drops}, ratio), ("decay_milestones", "decay_rate")
    else:
        args.lose("sched", kind, "a recipe has steps, cosines and a constant rate; written as constant")
    others = ("min_lr", "cooldown_epochs", "decay_epochs", "decay_rate", "decay_milestones")
    args.idle(*(key for key in others if key not in used), *(() if warmup else ("warmup_lr",)))
    if warmup:
        schedule["warmup"] = {"name": "absolute", "epochs": warmup, "lr": first}
    args.leave("warmup_prefix", "the warm-up takes the place of the schedule's first epochs")
    args.leave("sched_on_updates", "the rate changes once an epoch")
    return schedule


def _preprocess(args: Settings, model: str) -> dict[str, Any]:
    import timm

    bare = model.removeprefix("timm/")
    config = timm.models.get_pretrained_cfg(bare) or timm.models.get_pretrained_cfg(bare.partition(".")[0])
    known: dict[str, Any] = dict(vars(config)) if config is not None else {}
    whole = args.take("input_size", list, [])
    size = args.take("img_size", int, 0) or (whole[-1] if whole else known.get("input_size", (3, 224, 224))[-1])
    share = args.take("crop_pct", float, 0.0) or known.get("crop_pct", 0.875)
    words = args.take("interpolation", str, "") or known.get("interpolation", "bilinear")
    if words not in ("nearest", "bilinear", "bicubic"):
        args.lose("interpolation", words, "there is nearest, bilinear and bicubic; written as bicubic")
        words = "bicubic"
    mean = args.take("mean", list, []) or list(known.get("mean", (0.485, 0.456, 0.406)))
    std = args.take("std", list, []) or list(known.get("std", (0.229, 0.224, 0.225)))
    resize = max(size, math.floor(size / share))
    return {"size": size, "resize": resize, "interpolation": words, "normalize": {"mean": mean, "std": std}}


def _augment(args: Settings) -> list[dict[str, Any]]:
    scale, ratio = args.take("scale", list, [0.08, 1.0]), args.take("ratio", list, [3 / 4, 4 / 3])
    flip, jitter = args.take("hflip", float, 0.5), args.take("color_jitter", float, 0.4)
    policy, gray = args.take("aa", str, ""), args.take("grayscale_prob", float, 0.0)
    drawn = args.take("train_interpolation", str, "random")
    if args.take("no_aug", bool, False):
        args.idle("scale", "ratio", "hflip", "color_jitter", "aa", "grayscale_prob", "train_interpolation")
        return []
    crop: dict[str, Any] = {"name": "random_resized_crop", "scale": scale, "ratio": ratio}
    if drawn == "random":
        args.lose("train_interpolation", drawn, "one of two for each image; written as bilinear")
    else:
        crop["interpolation"] = drawn
    operations: list[dict[str, Any]] = [crop] + ([{"name": "horizontal_flip", "p": flip}] if flip else [])
    if policy.startswith("rand"):
        operations.append({"name": "rand_augment", "policy": policy})
    elif policy:
        args.lose("aa", policy, "of timm's policies there is rand")
    elif jitter:
        operations.append({"name": "color_jitter", **dict.fromkeys(("brightness", "contrast", "saturation"), jitter)})
    if policy:
        args.idle("color_jitter")
    return operations + ([{"name": "grayscale", "p": gray}] if gray else [])


def _mix(args: Settings, recipe: dict[str, Any], line: dict[str, Any]) -> None:
    mixup, cutmix = args.take("mixup", float, 0.0), args.take("cutmix", float, 0.0)
    share, switch = args.take("mixup_prob", float, 1.0), args.take("mixup_switch_prob", float, 0.5)
    args.leave(
        "mixup_mode", "one draw mixes a whole batch", ("batch",) if mixup or cutmix else ("batch", "pair", "elem")
    )
    if mixup or cutmix:
        recipe["mix"] = {"mixup": mixup, "cutmix": cutmix, "p": share, "switch": switch}
    else:
        args.idle("mixup", "cutmix", "mixup_prob", "mixup_switch_prob")
    line["objective"] = {"ce": {"label_smoothing": args.take("smoothing", float, 0.1)}}


def _rest(args: Settings, recipe: dict[str, Any]) -> None:
    repeats = args.take("aug_repeats", int, 0)
    if repeats > 1:
        recipe["repeats"] = repeats
    averaged, decay = args.take("model_ema", bool, False), args.take("model_ema_decay", float, 0.9998)
    if averaged:
        recipe["ema"] = {"decay": decay}
    else:
        args.idle("model_ema_decay")
    kind = args.take("amp_dtype", str, "float16")
    if args.take("amp", bool, False):
        recipe["precision"] = "bf16-mixed" if kind == "bfloat16" else "16-mixed"
    else:
        args.idle("amp_dtype")
    if args.take("channels_last", bool, False):
        recipe["channels_last"] = True
    largest, mode = args.take("clip_grad", float, 0.0), args.take("clip_mode", str, "norm")
    if largest and mode == "norm":
        recipe["clip_norm"] = largest
    elif largest:
        args.idle("clip_grad")
        args.lose("clip_mode", mode, "gradients are clipped by their norm alone")
    else:
        args.idle("clip_mode")
    if args.take("sync_bn", bool, False):
        recipe["sync_batchnorm"] = True
    seed = args.given.pop("seed", None)
    if isinstance(seed, int):
        args.adopted.assumed.append(f"seed {seed} was theirs; a page's `seeds:` are yours, and draw other numbers")


def _teacher(args: Settings, adopted: Adopted, line: dict[str, Any]) -> None:
    """The distillation task of timm's newer releases."""
    model = args.take("kd_model_name", str, "")
    kind, loss = args.take("kd_distill_type", str, "logit"), args.take("kd_loss_type", str, "kl")
    temperature = args.take("kd_temperature", float, 4.0)
    share, task = args.take("distill_loss_weight", float, -1.0), args.take("task_loss_weight", float, -1.0)
    args.leave("kd_model_kwargs", "write them as `model_args` of the teacher")
    args.leave("kd_pretrained_path", "name the file as `weights` of the teacher")
    for key in ("kd_student_feature_dim", "kd_teacher_feature_dim", "kd_token_distill_type"):
        args.leave(key, NO_SUCH) if model and kind != "logit" else args.skip(key)
    options = ("kd_distill_type", "kd_loss_type", "kd_temperature", "distill_loss_weight", "task_loss_weight")
    if not model:
        args.idle(*options)
        return
    if (kind, loss) != ("logit", "kl"):
        args.idle("kd_model_name", *options[1:])
        args.lose("kd_distill_type", f"{kind} ({loss})", "of timm's ways there is logit with kl; written without")
        return
    bare, _, tag = model.removeprefix("timm/").partition(".")
    adopted.runs["teacher"] = {"model": f"timm:{bare}", "weights": f"timm:{tag or _default_tag(bare)}"}
    line["teacher"] = "teacher"
    line["objective"]["kd"] = {"weight": share if share >= 0 else 1.0, "temperature": temperature}
    if task >= 0:
        line["objective"]["ce"]["weight"] = task
