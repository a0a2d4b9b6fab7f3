"""`distillery export`."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from distillery.errors import printable
from distillery.paths import RESULTS

Format = Literal["timm", "onnx", "torch.export", "safetensors", "hf"]


def export(
    run: Annotated[
        str,
        Argument(
            help="A finished run: EXPERIMENT/RUN, as digits/resnet8-kd, or its folder; EXPERIMENT for each trained run."
        ),
    ],
    to: Annotated[Format, Option(help="What to write, as above.")],
    out: Annotated[
        Path | None,
        Option(help="A new folder to write; by default exports/EXPERIMENT/RUN-seedK/FORMAT."),
    ] = None,
    seed: Annotated[
        int | None, Option(min=0, help="One of the run's seeds; by default the first that is there.")
    ] = None,
    config_dir: Annotated[Path, Option(help="Holds the experiment, for the published numbers on the card.")] = Path(
        "config"
    ),
    results: Annotated[Path, Option(help="Results folder.")] = RESULTS,
) -> None:
    """Write finished runs' networks, class names and model cards into folders that others load.

    \b
    timm          loads by timm.create_model("local-dir:FOLDER", pretrained=True)
                  without Distillery; for networks of timm
    onnx          model.onnx; needs pip install 'distillery[export]'
    torch.export  model.pt2, for torch.export.load
    safetensors   the weights and what describes them
    hf            a folder for the Hugging Face hub; timm loads it where the
                  network is timm's

    The exported file is read again and must give the run's logits; nothing is written where it does not.
    """
    from distillery.export.export import export_runs

    for line in export_runs(run, to, out, seed, config_dir, results):
        print(printable(line))
