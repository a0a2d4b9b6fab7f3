"""Write Arrow shards: the unit of parallel work, and of what is read back.

A shard is an Arrow IPC stream of one record batch with the columns ``image`` (the file's own bytes, and its path) and
``label``, and the schema of the `datasets` library's Image and ClassLabel, so ``load_dataset("arrow", data_files=...)``
reads it too. Every image is decoded once here, to check it and to count its pixels.

Where images are not embedded, ``bytes`` is null, and the columns ``file``, ``offset``, ``size`` and ``sha256`` say
where the image's bytes lie (all of the file, or so many bytes of an archive) and what they must be.

This module runs in worker processes and does not import torch.
"""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from xxhash import xxh3_128

from distillery.data.decode import as_rgb, decode_plain_jpeg, open_image
from distillery.data.png import encode_png
from distillery.data.raw import AnyFile, RawFile, RawReader
from distillery.data.sources import RawImage

IMAGES_PER_SHARD = 2048
BYTES_PER_SHARD = 256 * 2**20

# Where the bytes of an image that is not embedded lie; an offset is null where they are all of the file.
_PLACE = {"file": pa.string(), "offset": pa.int64(), "size": pa.int64(), "sha256": pa.binary()}

# Progress is reported after so many images: often enough for a moving bar, seldom enough to cost nothing.
_REPORT_EVERY = 32

# Of so many rows, float32 adds up the squares of bytes exactly, in any order (up to 256 rows: 256 * 255**2 < 2**24).
# Of more, the allocator would give the memory back to the system after each image, which takes longer than the sums.
_ROWS = 64


@dataclass(frozen=True)
class ShardTask:
    """What one shard is to hold, and where to write it."""

    images: tuple[RawImage, ...]
    classes: tuple[str, ...]
    target: Path
    embed: bool = True
    turn: bool = False  # images as their EXIF orientation asks, and store them so


@dataclass
class ShardFacts:
    """What was found and written: the file's size in bytes, a row for each kept image, and counts over them.

    ``hashes`` are of the images' files and ``pixels`` of what these decode to; ``turned`` counts the images whose EXIF
    orientation asks to be turned, and which are not.

    ``count`` is the number of pixels, and ``sums`` and ``squares`` are the sums of each channel's values and of their
    squares, shape (3,): exact integers, so that mean and deviation are the same in any order.
    """

    size: int = 0
    sha256: str = ""
    kept: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    pixels: list[bytes] = field(default_factory=list)
    turned: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    count: int = 0
    sums: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    squares: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))


class BadImageError(Exception):
    """An image file that cannot be decoded; the text says why."""


def split_into_shards(images: Sequence[RawImage]) -> Iterator[tuple[RawImage, ...]]:
    """Cut a split into runs of at most IMAGES_PER_SHARD images and BYTES_PER_SHARD bytes (a larger image alone)."""
    begin = size = 0
    for position, image in enumerate(images):
        if position - begin == IMAGES_PER_SHARD or (position > begin and size + image.file.size > BYTES_PER_SHARD):
            yield tuple(images[begin:position])
            begin, size = position, 0
        size += image.file.size
    if begin < len(images):
        yield tuple(images[begin:])


def write_shard(task: ShardTask, report: Callable[[int], None]) -> ShardFacts:
    """Check a shard's images, write those that are sound, and report what was found.

    ``report`` is called with a number of images as they are done. Without sound images no file is written.

    Raises:
        UserError: a file cannot be read.
        OSError: the shard cannot be written.
    """
    facts, encoded, ends = ShardFacts(), bytearray(), [0]
    with RawReader() as reader, warnings.catch_warnings():
        # Pillow's warnings are about metadata, and about sizes that `examine` refuses itself.
        warnings.simplefilter("ignore")
        for position, image in enumerate(task.images):
            content = reader.read(image.file)
            try:
                opened, pixels_HWC = examine(content)
                if _is_turned(opened) and task.turn:
                    content = encode_png(np.asarray(as_rgb(ImageOps.exif_transpose(opened))))
                    opened, pixels_HWC = examine(content)
                _count(facts, opened, pixels_HWC)
            except BadImageError as fault:
                facts.faults.append((image.path, str(fault)))
            else:
                facts.kept.append(position)
                facts.hashes.append(hashlib.sha256(content).digest())
                facts.pixels.append(_shape_and_hash(pixels_HWC))
                if task.embed:
                    encoded += content
                    ends.append(len(encoded))
            if (position + 1) % _REPORT_EVERY == 0:
                report(_REPORT_EVERY)
    if facts.kept:
        _write_arrow(task, facts, encoded, ends)
    report(len(task.images) % _REPORT_EVERY)
    return facts


def examine(content: bytes) -> tuple[Image.Image, npt.NDArray[np.uint8]]:
    """Decode an image file wholly; return it as opened (mode, format, size) and its pixels in RGB, (H, W, 3).

    Raises:
        BadImageError: the file is empty, no image, truncated, damaged, or so large that it may be a decompression bomb.
    """
    if not content:
        raise BadImageError("the file is empty")
    try:
        image = open_image(content)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise BadImageError(f"{image.width} x {image.height} pixels are more than the limit of {limit:,}")
        if image.format == "PNG":
            # Decoding alone passes over damaged checksums and a missing end. It uses the file up.
            image.verify()
            image = open_image(content)
        # What libjpeg-turbo takes without a warning Pillow would take too, as the same pixels, and more slowly.
        pixels_HWC = decode_plain_jpeg(content) if image.format == "JPEG" else None
        if pixels_HWC is None:
            image.load()
            pixels_HWC = np.asarray(as_rgb(image))
        return image, pixels_HWC
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("not an image, or of an unknown kind") from None
    except Exception as error:  # Pillow's readers raise anything, from SyntaxError to struct.error
        raise BadImageError(str(error).partition("\n")[0] or type(error).__name__) from None


def arrow_schema(classes: Sequence[str], embed: bool = True) -> pa.Schema:
    """The columns of a shard; the metadata is how the `datasets` library keeps its feature types."""
    label = {"names": list(classes), "_type": "ClassLabel"}
    features: dict[str, object] = {"image": {"_type": "Image"}, "label": label}
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    fields = [pa.field("image", image), pa.field("label", pa.int64())]
    if not embed:
        fields += [pa.field(name, kind) for name, kind in _PLACE.items()]
        features |= {name: {"dtype": str(kind), "_type": "Value"} for name, kind in _PLACE.items()}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _places(files: Sequence[AnyFile], hashes: Sequence[bytes]) -> list[pa.Array]:
    """The columns of images that are not embedded."""
    stored = [file for file in files if isinstance(file, RawFile)]
    assert len(stored) == len(files), "the caller has refused others"
    rows = [(str(file.location().absolute()), file.offset, file.size) for file in stored]
    columns = (*zip(*rows, strict=True), hashes)
    return [pa.array(column, kind) for column, kind in zip(columns, _PLACE.values(), strict=True)]


def _is_turned(image: Image.Image) -> bool:
    """Whether an image's metadata say that its pixels stand on their side or head, or are mirrored."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except Exception:  # damaged metadata raise anything, and are no reason to refuse the image
        return False


def _shape_and_hash(pixels_HWC: npt.NDArray[np.uint8]) -> bytes:
    """What tells images with different pixels apart, in this process and its parent: it is not kept."""
    return repr(pixels_HWC.shape).encode() + xxh3_128(np.ascontiguousarray(pixels_HWC).data).digest()


def _count(facts: ShardFacts, image: Image.Image, pixels_HWC: npt.NDArray[np.uint8]) -> None:
    facts.modes[image.mode] += 1
    facts.formats[image.format or "unknown"] += 1
    facts.turned += _is_turned(image)
    facts.widths.append(image.width)
    facts.heights.append(image.height)
    facts.count += image.height * image.width
    sums, squares = channel_sums(pixels_HWC)
    facts.sums += sums
    facts.squares += squares


def channel_sums(pixels_HWC: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sums of each channel's values and of their squares, each (C,) and exact."""
    height, width, channels = pixels_HWC.shape
    rows_HX = pixels_HWC.reshape(height, width * channels)
    sums_X, squares_X = np.zeros((2, width * channels), np.int64)
    for begin in range(0, height, _ROWS):
        block_HX = rows_HX[begin : begin + _ROWS].astype(np.float32)
        sums_X += block_HX.sum(axis=0).astype(np.int64)
        squares_X += np.einsum("hx,hx->x", block_HX, block_HX).astype(np.int64)
    return sums_X.reshape(width, channels).sum(axis=0), squares_X.reshape(width, channels).sum(axis=0)


def _write_arrow(task: ShardTask, facts: ShardFacts, encoded: bytearray, ends: list[int]) -> None:
    """Write what was found; ``encoded`` has the embedded images one after the other, with ``ends`` between them."""
    schema = arrow_schema(task.classes, task.embed)
    images = [task.images[position] for position in facts.kept]
    contents = pa.nulls(len(images), pa.binary())
    if task.embed:  # as they lie: pa.array would copy them
        parts = [None, pa.py_buffer(np.array(ends, np.int32)), pa.py_buffer(encoded)]
        contents = pa.Array.from_buffers(pa.binary(), len(images), parts)
    paths = pa.array([image.path for image in images], pa.string())
    image_column = pa.StructArray.from_arrays([contents, paths], fields=list(schema.field("image").type))
    label_column = pa.array([image.label for image in images], pa.int64())
    places = [] if task.embed else _places([image.file for image in images], facts.hashes)
    with pa.OSFile(str(task.target), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_batch(pa.record_batch([image_column, label_column, *places], schema=schema))
    facts.size = task.target.stat().st_size
    with task.target.open("rb") as file:
        facts.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
