"""Published data sets in miniature: real encodings in the official layouts, packed and unpacked."""

import csv
import io
import pickle
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from distillery.data.png import encode_png
from distillery.data.prepare import prepare_dataset
from distillery.experiment.schema.dataset import Dataset

# In the kit's own order, which is not sorted: class 1 of the kit is n02119789, but class 2 of the sorted wnids.
WNIDS = ("n02119789", "n01440764", "n01530575")


def pack(tree, path, mode="w", top=""):
    """Pack a mapping of paths to contents as a tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(tree, mode, top))
    return path


def packed(tree, mode="w", top=""):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in tree.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def unpack(tree, folder):
    """Write a mapping of paths to contents as files."""
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture
def pack_tree():
    return pack


@pytest.fixture
def unpack_tree():
    return unpack


@pytest.fixture
def jpegs(encode, noise):
    """JPEG files without end, each another picture; among the first are one in grey, one CMYK and one that is a PNG."""

    def generate():
        yield encode(noise(1, (40, 30), "L"), "jpeg")
        yield encode(noise(2, (40, 30)).convert("CMYK"), "jpeg")
        yield encode(noise(3, (40, 30)), "png")
        number = 4
        while True:
            yield encode(noise(number, (40, 30)), "jpeg", quality=90)
            number += 1

    return generate()


@pytest.fixture
def imagenet(tmp_path, jpegs):
    """The miniature's files by part, and a folder for each way in which people have them."""
    train = {f"{wnid}/{wnid}_{10 * index}.JPEG": next(jpegs) for wnid in sorted(WNIDS) for index in range(1, 6)}
    labels = [2, 1, 3, 3, 1, 2]
    val = {f"ILSVRC2012_val_{number:08d}.JPEG": next(jpegs) for number in range(1, 7)}
    kit = {
        "data/meta.mat": meta_mat(),
        "data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{label}\n" for label in labels).encode(),
        "readme.txt": b"a kit",
    }
    return ImageNet(tmp_path, train, val, kit, dict(zip(val, (WNIDS[label - 1] for label in labels), strict=True)))


class ImageNet:
    def __init__(self, folder, train, val, kit, labels):
        self.folder, self.train, self.val, self.kit, self.labels = folder, train, val, kit, labels

    def class_tars(self):
        return {
            f"{wnid}.tar": packed({path.split("/")[1]: self.train[path] for path in self.train if wnid in path})
            for wnid in sorted(WNIDS, reverse=True)
        }

    def tars(self, name="tars"):
        folder = self.folder / name
        pack(self.class_tars(), folder / "ILSVRC2012_img_train.tar")
        pack(self.val, folder / "ILSVRC2012_img_val.tar")
        pack(self.kit, folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz", "ILSVRC2012_devkit_t12/")
        return folder

    def folders(self, name="folders", val="val"):
        unpack(self.train, self.folder / name / "train")
        unpack({f"{self.labels[path]}/{path}": content for path, content in self.val.items()}, self.folder / name / val)
        return self.folder / name

    def class_tars_and_flat_images(self, name="mixed"):
        unpack(self.class_tars(), self.folder / name / "train")
        unpack(self.val, self.folder / name / "val")
        unpack(self.kit, self.folder / name / "ILSVRC2012_devkit_t12")
        return self.folder / name

    def later_archive(self, name="later"):
        root = self.folder / name / "ILSVRC" / "Data" / "CLS-LOC"
        unpack(self.train, root / "train")
        unpack(self.val, root / "val")
        with (self.folder / name / "LOC_val_solution.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("ImageId", "PredictionString"))
            writer.writerows((Path(path).stem, f"{wnid} 1 2 3 4 {wnid} 5 6 7 8 ") for path, wnid in self.labels.items())
        return self.folder / name


def meta_mat():
    """The kit's table of classes, with one that stands above them."""
    from scipy.io import savemat

    rows = [(number, wnid, "words", "gloss", 0, [], 0, 1300) for number, wnid in enumerate(WNIDS, start=1)]
    rows.append((4, "n00001740", "entity", "all", 3, [1, 2, 3], 5, 0))
    names = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    synsets = np.empty((len(rows), 1), dtype=[(name, object) for name in (*names, "num_train_images")])
    for place, row in enumerate(rows):
        synsets[place, 0] = tuple(np.asarray(value) if isinstance(value, list) else value for value in row)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


@pytest.fixture
def cub(tmp_path, jpegs):
    return Cub(tmp_path, jpegs)


class Cub:
    def __init__(self, folder, jpegs):
        self.folder = folder
        classes = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird")
        images = [
            (f"{name}/{name[4:]}_{index:04d}_79.jpg", label, index % 3 > 0)
            for label, name in enumerate(classes, start=1)
            for index in range(6)
        ]
        self.contents = {path: next(jpegs) for path, _, _ in images}
        self.training = {path: training for path, _, training in images}
        lists = {
            "images.txt": [path for path, _, _ in images],
            "image_class_labels.txt": [label for _, label, _ in images],
            "train_test_split.txt": [int(training) for _, _, training in images],
            "classes.txt": classes,
        }
        self.lists = {
            name: "".join(f"{number} {value}\n" for number, value in enumerate(values, start=1))
            for name, values in lists.items()
        }

    def files(self):
        tree = {f"CUB_200_2011/{name}": text.encode() for name, text in self.lists.items()}
        tree |= {f"CUB_200_2011/images/{path}": content for path, content in self.contents.items()}
        return {"./attributes.txt": b"1 has_bill_shape::curved\n", **tree, "CUB_200_2011/README": b"birds"}

    def archive(self, name="archive"):
        path = self.folder / name / "CUB_200_2011.tgz"
        return pack(self.files(), path, "w:gz").parent

    def unpacked(self, name="unpacked"):
        return unpack(self.files(), self.folder / name)

    def folders(self, name="folders"):
        split = {path: "train" if training else "val" for path, training in self.training.items()}
        tree = {f"{split[path]}/{path}": content for path, content in self.contents.items()}
        return unpack(tree, self.folder / name)


@pytest.fixture
def tiny_imagenet(tmp_path, jpegs):
    return TinyImageNet(tmp_path, jpegs)


class TinyImageNet:
    def __init__(self, folder, jpegs):
        self.folder = folder
        self.train = {
            f"{wnid}/images/{wnid}_{number}.JPEG": next(jpegs) for wnid in sorted(WNIDS) for number in range(4)
        }
        self.val = {f"val_{number}.JPEG": (WNIDS[number % 3], next(jpegs)) for number in range(6)}
        self.annotations = "".join(f"{path}\t{wnid}\t0\t32\t44\t62\n" for path, (wnid, _) in self.val.items())
        self.test = {"test/images/test_0.JPEG": next(jpegs)}

    def files(self):
        tree = {f"train/{path}": content for path, content in self.train.items()}
        tree |= {f"train/{wnid}/{wnid}_boxes.txt": b"n_0.JPEG\t0\t1\t2\t3\n" for wnid in WNIDS}
        tree |= {f"val/images/{path}": content for path, (_, content) in self.val.items()}
        tree |= {"val/val_annotations.txt": self.annotations.encode(), "wnids.txt": b"n\n", **self.test}
        return {f"tiny-imagenet-200/{path}": content for path, content in tree.items()}

    def archive(self, name="archive"):
        path = self.folder / name / "tiny-imagenet-200.zip"
        path.parent.mkdir()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file, content in self.files().items():
                archive.writestr(file, content)
        return path.parent

    def unpacked(self, name="unpacked"):
        return unpack(self.files(), self.folder / name)

    def folders(self, name="folders"):
        tree = {f"train/{path}": content for path, content in self.train.items()}
        tree |= {f"train/{wnid}/boxes.txt": b"0\n" for wnid in WNIDS}
        tree |= {f"val/{wnid}/{path}": content for path, (wnid, content) in self.val.items()}
        return unpack(tree, self.folder / name)


@pytest.fixture
def cifar(tmp_path):
    return Cifar


class Cifar:
    """CIFAR-10 or CIFAR-100, pickled as Python 2 has done it."""

    def __init__(self, folder, hundred=False):
        self.folder, self.hundred = folder, hundred
        self.classes = ("apple", "bear", "cup") if hundred else ("airplane", "automobile", "bird")
        self.top = "cifar-100-python" if hundred else "cifar-10-batches-py"
        self.labels_key = b"fine_labels" if hundred else b"labels"
        files = {"train": 10, "test": 6} if hundred else {f"data_batch_{n}": 3 for n in range(1, 6)} | {"test_batch": 6}
        self.tables = {file: self.table(file, images) for file, images in files.items()}
        names = [name.encode() for name in self.classes]
        key = b"fine_label_names" if hundred else b"label_names"
        self.tables["meta" if hundred else "batches.meta"] = {key: names, b"num_vis": 3072}

    def table(self, file, images):
        generator = np.random.Generator(np.random.Philox(key=sum(file.encode())))
        labels = [number % 3 for number in range(images)]
        names = [f"{self.classes[label]}_s_{number:06d}_{file}.png".encode() for number, label in enumerate(labels)]
        pixels = generator.integers(0, 256, (images, 3072), dtype=np.uint8)
        table = {b"batch_label": file.encode(), self.labels_key: labels, b"data": pixels, b"filenames": names}
        return table | ({b"coarse_labels": [0] * images} if self.hundred else {})

    def files(self):
        return {f"{self.top}/{file}": python2_pickle(table) for file, table in self.tables.items()}

    def archive(self, name="archive"):
        file = "cifar-100-python.tar.gz" if self.hundred else "cifar-10-python.tar.gz"
        return pack(self.files(), self.folder / name / file, "w:gz").parent

    def unpacked(self, name="unpacked"):
        return unpack({**self.files(), f"{self.top}/readme.html": b"<html>"}, self.folder / name)

    def folders(self, name="folders"):
        tree = {}
        for file, table in self.tables.items():
            if b"data" in table:
                split = "val" if file.startswith("test") else "train"
                for pixels, label, image in zip(
                    table[b"data"], table[self.labels_key], table[b"filenames"], strict=True
                ):
                    path = f"{split}/{self.classes[label]}/{image.decode()}"
                    tree[path] = encode_png(pixels.reshape(3, 32, 32).transpose(1, 2, 0))
        return unpack(tree, self.folder / name)


def python2_pickle(value):
    """What cPickle of Python 2 wrote, whose texts are bytes and whose numpy had another folder."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value):
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, (bool, int)) or value is None:
        return pickle.dumps(value, 2)[2:-1]
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_opcodes, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(key) + _opcodes(item) for key, item in value.items()) + b"u"
    array = b"cnumpy\nndarray\n" + _opcodes((0,)) + _opcodes(b"b")
    kind = b"cnumpy\ndtype\n" + _opcodes((b"u1", 0, 1)) + b"R" + _opcodes((3, b"|", None, None, None, -1, -1, 0)) + b"b"
    state = b"(" + _opcodes(1) + _opcodes(value.shape) + kind + _opcodes(False) + _opcodes(value.tobytes()) + b"t"
    return b"cnumpy.core.multiarray\n_reconstruct\n(" + array + b"tR" + state + b"b"


@pytest.fixture
def prepare_as(tmp_path):
    """Prepare raw images and return the manifest and all bytes written."""

    def prepare(path, layout, **options):
        output = tmp_path / "results" / Path(path).name / "toy"
        manifest = prepare_dataset("toy", Dataset(path=str(path), layout=layout, **options), output, 1)
        contents = {file.name: file.read_bytes() for file in output.iterdir()}
        shutil.rmtree(output)
        return manifest, contents

    return prepare
