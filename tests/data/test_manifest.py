"""A data set that is missing, incomplete or of another version is never taken for a whole one."""

import json
import os
import re

import pytest

from distillery.data import manifest
from distillery.data.arrow import ArrowImages
from distillery.data.manifest import load_manifest
from distillery.errors import UserError
from distillery.results import file_hash, write_sealed


@pytest.fixture
def prepared(place):
    place.fill().prepare()
    return place.output


def change(folder, edit):
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    write_sealed(path, content)


def refused(folder, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_manifest(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_data_set_is_named_with_the_command_that_makes_it(tmp_path):
    refused(tmp_path / "toy", "toy/manifest.json: missing; first make it with: distillery prepare toy")


def test_another_format_is_refused(prepared):
    change(prepared, lambda content: content.update(format=2))
    refused(prepared, "manifest.json: format: 2, but this version reads 1; make it again with: distillery prepare toy")


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "null"])
def test_damaged_json_is_refused(prepared, text):
    (prepared / "manifest.json").write_text(text)
    refused(prepared, "make it again with: distillery prepare toy")


def test_a_wrong_key_is_named(prepared):
    change(prepared, lambda content: content["splits"]["val"].update(images=-3))
    refused(prepared, "manifest.json: splits.val.images: -3 is not valid")


def test_missing_and_cut_shards_are_named(prepared):
    shard = prepared / "val-00000-of-00001.arrow"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(prepared, f"val-00000-of-00001.arrow: {size - 1} bytes instead of {size}; make it again with")
    shard.unlink()
    refused(prepared, "val-00000-of-00001.arrow: cannot be read: No such file or directory; make it again with")


def test_a_damaged_shard_is_named_when_it_is_read(prepared):
    shard = prepared / "train-00000-of-00001.arrow"
    shard.write_bytes(b"x" * shard.stat().st_size)
    os.utime(shard, ns=(0, 0))
    images = ArrowImages(prepared, load_manifest(prepared), "train")
    with pytest.raises(UserError, match=r"train-00000-of-00001\.arrow: cannot be read: .*distillery prepare toy"):
        images.encoded(0)


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda part: part.update(images_per_class=[1, *part["images_per_class"][1:]]), "val.images_per_class: "),
        (lambda part: part.update(images_per_class=[*part["images_per_class"], 0]), "val.images_per_class: "),
        (lambda part: part["shards"][0].update(images=1), "val.shards: 1 images, but the split has "),
        (lambda part: part["shards"][0].update(file="../../../elsewhere.arrow"), "'../../../elsewhere.arrow' is not a"),
        (lambda part: part["shards"][0].update(file="/elsewhere.arrow"), "'/elsewhere.arrow' is not a file of this"),
    ],
)
def test_what_does_not_add_up_is_refused(prepared, edit, line):
    change(prepared, lambda content: edit(content["splits"]["val"]))
    refused(prepared, line)


def test_a_flipped_bit_of_an_image_is_found_before_a_shard_is_used(prepared):
    shard = prepared / "train-00000-of-00001.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    refused(prepared, "train-00000-of-00001.arrow: was changed since it was prepared: its checksum is another; make it")


def test_a_copied_shard_is_hashed_once(prepared, monkeypatch):
    hashed = []
    monkeypatch.setattr(manifest, "file_hash", lambda path: hashed.append(path.name) or file_hash(path))
    load_manifest(prepared)
    assert hashed == []
    (prepared / "val-00000-of-00001.arrow").touch()
    for _ in range(2):
        load_manifest(prepared)
    assert hashed == ["val-00000-of-00001.arrow"]
