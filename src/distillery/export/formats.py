"""What each format writes, and how it is read again.

Each function writes into a folder and returns what others would have: a function from images in [0, 1], (B, 3, H, W),
to logits (B, C).
"""

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillery.errors import UserError
from distillery.evaluation.restore import FinishedRun, restore_folder
from distillery.models.registry import library_of
from distillery.models.weights import save_weights

Predict = Callable[[Tensor], Tensor]
WITHIN = "float32 (N, 3, {size}, {size}), RGB in [0, 1]; mean and deviation are applied inside"
BEFORE = "float32 (N, 3, {size}, {size}), RGB in [0, 1], less the mean, over the deviation"


class Deployed(nn.Module):
    """A network that normalises its images itself."""

    def __init__(self, finished: FinishedRun) -> None:
        super().__init__()
        self.normalize, self.network = finished.normalize, finished.network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) for images in [0, 1], (B, 3, H, W)."""
        logits_BC: Tensor = self.network(self.normalize(images))
        return logits_BC


def describe(finished: FinishedRun, to: str) -> dict[str, Any]:
    """config.json of formats that have none of their own: all that is needed to use the network."""
    record, spec, size = finished.record, finished.record["spec"], finished.preprocess.size
    within = to in ("onnx", "torch.export")
    return {
        "architecture": spec["model"],
        "model_args": spec.get("model_args", {}),
        **({"head": record["head"]} if "head" in record else {}),
        "num_classes": record["classes"],
        "label_names": record.get("class_names"),
        "input": (WITHIN if within else BEFORE).format(size=size),
        "preprocess": record["preprocess"],
        "mean": record["statistics"]["mean"],
        "std": record["statistics"]["std"],
        "library_name": "distillery",
        "digest": record["digest"],
        "weights_sha256": finished.weights_sha256,
    }


def is_timm(finished: FinishedRun) -> bool:
    """Whether timm builds this network by its name alone."""
    return library_of(finished.record["spec"]["model"]) == "timm" and "head" not in finished.record


def _timm(finished: FinishedRun, folder: Path) -> Predict:
    import timm

    name, record = finished.record["spec"]["model"], finished.record
    others = "use --to onnx, torch.export, safetensors or hf"
    if "head" in record:
        raise UserError(
            f"--to: timm cannot hold {name} with the head that {record['head']['term']} deploys with it; {others}"
        )
    if not is_timm(finished):
        library = {"zoo": "Distillery's zoo", "plugin": "a plugin"}.get(str(library_of(name)), library_of(name))
        raise UserError(f"--to: {name} is a network of {library}, which timm does not know; {others}")
    preprocess, statistics = finished.preprocess, record["statistics"]
    timm.models.save_for_hf(
        finished.network,
        str(folder),
        model_config={
            "num_classes": record["classes"],
            **({"label_names": record["class_names"]} if record.get("class_names") else {}),
        },
        model_args=record["spec"].get("model_args") or None,
        data_config={
            "input_size": (3, preprocess.size, preprocess.size),
            "interpolation": preprocess.interpolation,
            "mean": tuple(statistics["mean"]),
            "std": tuple(statistics["std"]),
            "crop_pct": crop_share(preprocess.size, preprocess.resize or preprocess.size),
            "crop_mode": "center",
        },
        safe_serialization=True,
    )
    save_weights(finished.network, folder / "model.safetensors")  # readable by all, and the same bytes as the run's
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return lambda images: network(finished.normalize(images))


def crop_share(size: int, resize: int) -> float:
    """timm's `crop_pct`, of which its own transforms make ``floor(size / crop_pct)`` again."""
    share = size / resize
    while math.floor(size / share) < resize:
        share = math.nextafter(share, 0)
    return share


def _safetensors(finished: FinishedRun, folder: Path) -> Predict:
    save_weights(finished.network, folder / "model.safetensors")
    return restore_folder(finished.weights.parent, folder / "model.safetensors").predict


def _hf(finished: FinishedRun, folder: Path) -> Predict:
    return _timm(finished, folder) if is_timm(finished) else _safetensors(finished, folder)


def _example(finished: FinishedRun) -> tuple[Tensor, dict[str, Any]]:
    """An image batch, and that its length may be another."""
    size = finished.preprocess.size
    return torch.rand(2, 3, size, size), {"images": {0: torch.export.Dim("batch", min=1, max=2**20)}}


def _traced(what: str, trace: Callable[[], Any]) -> Any:  # noqa: ANN401
    try:
        return trace()
    # Whatever a network does that a tracer cannot follow.
    except Exception as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise UserError(f"--to: this network cannot be traced for {what}: {reason}") from error


def _torch_export(finished: FinishedRun, folder: Path) -> Predict:
    images, shapes = _example(finished)
    program = _traced(
        "torch.export", lambda: torch.export.export(Deployed(finished).eval(), (images,), dynamic_shapes=shapes)
    )
    path, facts = folder / "model.pt2", json.dumps(describe(finished, "torch.export"))
    torch.export.save(program, path, extra_files={"config.json": facts})
    predict: Predict = torch.export.load(path).module()
    return predict


def _onnx(finished: FinishedRun, folder: Path) -> Predict:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"--to: onnx needs {', '.join(missing)}; pip install 'distillery[export]'")
    import onnxruntime

    images, shapes = _example(finished)
    program = _traced(
        "onnx",
        lambda: torch.onnx.export(
            Deployed(finished).eval(),
            (images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        ),
    )
    facts = {name: value for name, value in describe(finished, "onnx").items() if value is not None}
    program.model.metadata_props.update({name: _plain(value) for name, value in facts.items()})
    path = folder / "model.onnx"
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _plain(value: Any) -> str:  # noqa: ANN401
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


FORMATS: dict[str, Callable[[FinishedRun, Path], Predict]] = {
    "timm": _timm,
    "onnx": _onnx,
    "torch.export": _torch_export,
    "safetensors": _safetensors,
    "hf": _hf,
}
