"""The second loader: NVIDIA DALI decodes, cuts and resizes, on the GPU where there is one.

It is fed from the same shards by the same batches as the first. Where each image is cut is drawn here, by the image's
address, and handed to DALI; the operations on the finished square are the very ones of the first loader, seeded alike.
So the same address gives the same crop, and a run may change loaders at any step: pixels differ by what decoders and
resizers round differently (about 0.2 of 255 levels on average).

DALI is for JPEGs and plain PNGs. All other images Pillow decodes, as in the first loader.
"""

import importlib.util
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distillery.data.arrow import ArrowImages
from distillery.data.augment.crop import Crop, CropParams
from distillery.data.decode import image_size, is_plain_png, is_reducible
from distillery.data.loader import Batch, assemble, generators_kept, seed_sample
from distillery.data.samplers import GlobalBatches, Sample
from distillery.data.transforms import Transform
from distillery.errors import UserError

# Batches that DALI works on while the network trains on another.
_AHEAD = 2


@dataclass(frozen=True)
class _Order:
    """A batch on its way: its samples, which of them DALI prepares, and the squares it makes of them (B, 3, H, W)."""

    samples: list[Sample]
    fed: list[bool]
    squares: "Future[Tensor] | None"


class DaliLoader:
    """Augmented batches of ``batches``, prepared by DALI; each iteration goes where ``batches.start`` has put it.

    ``threads`` are DALI's, on the CPU. Where ``device`` is a GPU, images are decoded there and stay.

    Raises:
        UserError: DALI is not installed.
    """

    def __init__(
        self,
        images: ArrowImages,
        transform: Transform,
        batches: GlobalBatches,
        seed: int,
        threads: int,
        device: torch.device,
    ) -> None:
        if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
            raise UserError(
                "--loader: 'dali' needs NVIDIA DALI, which is not installed; install distillery[dali] or use torch"
            )
        self._images, self._transform, self._batches, self._seed = images, transform, batches, seed
        self._threads, self._device = max(threads, 1), device
        self._pipeline: Any = None
        # One thread waits for DALI's own. It draws nothing: the generators belong to the thread that trains.
        self._waiter = ThreadPoolExecutor(1, "dali")

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        orders: deque[_Order] = deque()
        for samples in self._batches:
            with generators_kept():
                orders.append(self._place_order(samples))
            if len(orders) > _AHEAD:
                yield self._serve(orders.popleft())
        while orders:
            yield self._serve(orders.popleft())

    def _place_order(self, samples: list[Sample]) -> _Order:
        """Draw where each image is cut, and let DALI begin."""
        encoded = [self._images.encoded(sample.index) for sample in samples]
        fed = [is_reducible(content) or is_plain_png(content) for content in encoded]
        plain = [(sample, content) for sample, content, feed in zip(samples, encoded, fed, strict=True) if feed]
        if not plain:
            return _Order(samples, fed, None)
        inputs = _arguments([self._draw(sample, content) for sample, content in plain])
        inputs["encoded"] = [np.frombuffer(content, dtype=np.uint8) for _, content in plain]
        return _Order(samples, fed, self._waiter.submit(self._run, inputs))

    def _draw(self, sample: Sample, encoded: memoryview) -> CropParams:
        seed_sample(self._seed, sample)
        return self._transform.crop.draw(*image_size(encoded))

    def _run(self, inputs: dict[str, list[npt.NDArray[Any]]]) -> Tensor:
        """Send a batch through the pipeline; the copy outlives DALI's buffer."""
        if self._pipeline is None:
            self._pipeline = _build_pipeline(self._transform.crop, self._batches.largest, self._threads, self._device)
        (squares,) = self._pipeline.run(**inputs)
        return torch.utils.dlpack.from_dlpack(squares.as_tensor()).clone()

    def _serve(self, order: _Order) -> Batch:
        """Finish the images of a batch as the first loader does."""
        squares = iter(()) if order.squares is None else iter(order.squares.result())
        loaded: list[tuple[Tensor, Tensor | None]] = []
        with generators_kept():
            for sample, fed in zip(order.samples, order.fed, strict=True):
                encoded = self._images.encoded(sample.index)
                if fed:
                    self._draw(sample, encoded)  # for the draws that follow it
                    square_CHW = self._transform.finish(next(squares))
                else:
                    seed_sample(self._seed, sample)
                    square_CHW = self._transform.decode(encoded).to(self._device)
                loaded.append((square_CHW, self._transform.draw_shift()))
        return assemble(self._images, [sample.index for sample in order.samples], loaded)


def _arguments(crops: list[CropParams]) -> dict[str, list[npt.NDArray[Any]]]:
    """What the pipeline asks about each image."""
    rows = np.array(crops, dtype=np.int32)
    columns = {"start": rows[:, :2], "shape": rows[:, 2:4], "new": rows[:, 4:6].astype(np.float32), "cut": rows[:, 6:]}
    return {name: list(np.ascontiguousarray(values)) for name, values in columns.items()}


def _build_pipeline(crop: Crop, batch: int, threads: int, device: torch.device) -> Any:  # noqa: ANN401
    from nvidia.dali import fn, pipeline_def, types

    resizing = {"nearest": types.INTERP_NN, "bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
    on_gpu = device.type == "cuda"

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=batch, num_threads=threads, device_id=(device.index or 0) if on_gpu else None, prefetch_queue_depth=1
    )
    def pipeline() -> Any:  # noqa: ANN401
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        start, shape, cut = (
            fn.external_source(name=name, dtype=types.INT32, ndim=1) for name in ("start", "shape", "cut")
        )
        new = fn.external_source(name="new", dtype=types.FLOAT, ndim=1)
        window = fn.decoders.image_slice(
            encoded,
            start=start,
            shape=shape,
            axes=[0, 1],
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,
        )
        resized = fn.resize(window, size=new, interp_type=resizing[crop.interpolation], antialias=crop.antialias)
        square = fn.slice(resized, start=cut, shape=[crop.size, crop.size], axes=[0, 1])
        return fn.transpose(square, perm=[2, 0, 1])

    built = pipeline()
    built.build()
    return built
