"""Raw images are fetched before they are prepared, once, and only for the experiments that need them."""

import hashlib
import io
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path):
    """A server on this machine with a data set in a tar; yields its address and checksum."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path / "served")

        def log_message(self, *arguments):
            pass

    (tmp_path / "served").mkdir()
    path = tmp_path / "served" / "tiny-imagenet-200.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(6):
            buffer = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(buffer, "png")
            info = tarfile.TarInfo(f"{('train', 'val')[number % 2]}/n{number // 2}/{number}.png")
            info.size = len(buffer.getvalue())
            buffer.seek(0)
            tar.addfile(info, buffer)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/{path.name}", hashlib.sha256(path.read_bytes()).hexdigest()
    http.shutdown()
    http.server_close()


def test_a_data_set_is_downloaded_and_prepared(fresh, server):
    url, sha256 = server
    download = f"{{url: '{url}', checksum: 'sha256:{sha256}'}}"
    fresh.append(
        "config/datasets.yaml", f"fetched: {{path: data/fetched, layout: tiny-imagenet, download: {download}}}\n"
    )
    target = "results/datasets/fetched/manifest.json"
    assert fresh.planned(target) == {"download data set fetched", "prepare data set fetched"}
    result = fresh.run("snakemake", target, "--cores", "2")
    assert result.returncode == 0, result.stdout
    assert fresh.planned(target) == set()
    # Where the raw images lie already, a mark that was lost brings back no work.
    (fresh.folder / "results" / "datasets" / "fetched.downloaded").unlink()
    assert fresh.run("distillery", "download", "fetched").returncode == 0


def test_only_experiments_of_a_data_set_ask_for_it(pristine):
    planned = pristine.planned("--config", "experiments=digits")
    assert not {message for message in planned if "download" in message}
    cub = pristine.planned("results/datasets/cub200/manifest.json")
    assert cub == {"download data set cub200", "prepare data set cub200"}
    assert pristine.planned("results/datasets/imagenet/manifest.json") == {"prepare data set imagenet"}
