"""Images that stay where they are: the same data set, and never another one unnoticed."""

import pickle
import shutil

import pytest

from distillery.data import shards
from distillery.data.arrow import ArrowImages
from distillery.data.manifest import load_manifest
from distillery.errors import UserError


def read(place, split="train"):
    images = ArrowImages(place.output, load_manifest(place.output), split)
    return [bytes(images.encoded(index)) for index in range(len(images))]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_the_same_images_and_digest_in_shards_without_images(place, monkeypatch, kind):
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 4)
    raw = place.fill().raw if kind == "folder" else place.fill().tar()
    embedded = place.prepare(raw)
    expected = read(place), read(place, "val")
    pointing = place.prepare(raw, embed=False)
    assert pointing.digest == embedded.digest
    assert pointing.statistics == embedded.statistics
    assert (read(place), read(place, "val")) == expected
    content = b"".join(path.read_bytes() for path in place.output.iterdir())
    assert not any(image in content for image in expected[0])


def test_a_copy_in_another_process_reads_the_same(place):
    place.fill().prepare(embed=False)
    images = ArrowImages(place.output, load_manifest(place.output), "train")
    first = bytes(images.encoded(0))
    copy = pickle.loads(pickle.dumps(images))
    assert bytes(copy.encoded(0)) == first
    assert copy.path(0) == "train/ape/000.png"


CHANGES = {
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "shorter": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "another": lambda path: path.write_bytes((path.parent / "001.png").read_bytes()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_refused_in_one_line(place, change):
    place.fill().prepare(embed=False)
    CHANGES[change](place.raw / "train" / "ape" / "000.png")
    message = r"train/ape/000\.png: was changed since it was prepared; bring it back, or run: distillery prepare toy"
    with pytest.raises(UserError, match=message) as caught:
        read(place)
    assert str(caught.value).startswith(str(place.raw))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_changed_file_is_refused_in_one_line_from_a_workers_process_too(place, workers):
    from torch.utils.data import DataLoader

    place.fill().prepare(embed=False)
    changed = place.raw / "train" / "ape" / "000.png"
    changed.write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        list(DataLoader(Encoded(place.output), num_workers=workers))
    assert str(caught.value) == (
        f"{changed}: was changed since it was prepared; bring it back, or run: distillery prepare toy"
    )


class Encoded:
    def __init__(self, folder):
        self.images = ArrowImages(folder, load_manifest(folder), "train")

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return len(self.images.encoded(index))


def test_a_missing_file_is_named(place):
    place.fill().prepare(embed=False)
    shutil.rmtree(place.raw)
    with pytest.raises(UserError, match=r"raw/train/ape/000\.png: cannot be read: No such file"):
        read(place)


def test_a_changed_tar_is_named_with_the_image_in_it(place):
    path = place.fill().tar()
    place.prepare(path, embed=False)
    image = (place.raw / "train" / "ape" / "000.png").read_bytes()
    path.write_bytes(path.read_bytes().replace(image, image[:-1] + b"x"))
    with pytest.raises(UserError, match=r"raw\.tar: train/ape/000\.png: was changed since it was prepared"):
        read(place)


def test_what_cannot_be_pointed_to_is_refused(place):
    path = place.fill().tar("raw.tar.gz", "w:gz")
    with pytest.raises(UserError, match=r"raw\.tar\.gz: train/ape/000\.png lies in no plain file, folder or tar that"):
        place.prepare(path, embed=False)
    assert not place.output.exists()


@pytest.mark.slow
def test_the_datasets_library_reads_where_they_lie(place, tmp_path):
    import datasets

    place.fill().prepare(embed=False)
    files = str(place.output / "train-00000-of-00001.arrow")
    loaded = datasets.load_dataset("arrow", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    row = loaded.cast_column("image", datasets.Image(decode=False))[0]
    assert row["file"] == str(place.raw / "train" / "ape" / "000.png")
    assert (row["image"]["path"], row["size"]) == (
        "train/ape/000.png",
        (place.raw / "train/ape/000.png").stat().st_size,
    )
