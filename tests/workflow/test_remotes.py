"""`save` and `restore` over real remotes: a folder, an SSH server and an S3 server; what goes wrong on the way."""

import fcntl
import getpass
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.workflow.conftest import Checkout, commit_all, copy, made_once

pytestmark = pytest.mark.slow

EVERYTHING = ("--config", "experiments=tiny")
WEIGHTS = "results/tiny/taught/seed0/weights.safetensors"
RECORD = "results/tiny/taught/seed0/run.json"
TABLE = "results/tables/tiny.md"


def save(checkout: Checkout):
    return checkout.run("python", "scripts/versions.py", "save")


def restore(checkout: Checkout):
    return checkout.run("python", "scripts/versions.py", "restore")


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in result.stdout
    return result.stdout.splitlines()[-1]


def configure(checkout: Checkout, *options: tuple[str, str], url: str) -> None:
    """Add the remote as docs/versioning.md says: where it is in git, secrets in .dvc/config.local."""
    checkout.run("dvc", "remote", "add", "--default", "--force", "store", url)
    for name, value in options:
        result = checkout.run("dvc", "remote", "modify", "--local", "store", name, value)
        assert result.returncode == 0, result.stdout


def fresh_clone(checkout: Checkout, folder: Path) -> Checkout:
    """What a colleague gets from git alone."""
    subprocess.run(["git", "clone", "--quiet", str(checkout.folder), str(folder)], check=True)
    return Checkout(folder, checkout.environment)


@pytest.fixture(scope="session")
def saved(tmp_path_factory, worker_id, recorded):
    """A recorded experiment and the folder remote beside it that it was saved to. Read only."""

    def make(checkout: Checkout) -> None:
        shutil.rmtree(checkout.folder)
        copy(recorded.folder, checkout.folder)
        configure(checkout, url=str(checkout.folder.parent / "store"))
        result = save(checkout)
        assert result.returncode == 0, result.stdout
        commit_all(checkout)

    return made_once(tmp_path_factory, worker_id, "saved", make)


@pytest.fixture
def stored(saved, tmp_path):
    """The saved experiment, a copy of its remote, and a fresh clone of it to restore to."""
    clone = fresh_clone(saved, tmp_path / "clone" / "distillery")
    shutil.copytree(saved.folder.parent / "store", tmp_path / "store")
    clone.run("dvc", "remote", "modify", "--local", "store", "url", str(tmp_path / "store"))
    return saved, tmp_path / "store", clone


def object_of(store: Path, checkout: Checkout, name: str) -> Path:
    """Where a store keeps a file's bytes."""
    digest = subprocess.run(["md5sum", checkout.folder / name], capture_output=True, text=True, check=True).stdout
    return store / "files" / "md5" / digest[:2] / digest[2:32]


def damage(path: Path) -> None:
    """Flip one bit, as a failing disk does: DVC goes by dates and by the mode that it gives to its copies."""
    before = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.chmod(before.st_mode)


# --- there and back ---------------------------------------------------------------------------------------------------


def test_a_clone_restores_everything_and_sees_later_changes(stored):
    original, _, clone = stored
    check_restored(clone, original)
    # Both tools hold what was restored for current, and see the edit of one student.
    assert clone.planned(*EVERYTHING) == set()
    assert clone.run("dvc", "status", "--quiet").returncode == 0
    clone.replace("config/tiny.yaml", "kd: {weight: 0.5}", "kd: {weight: 0.5, temperature: 2}")
    assert {message for message in clone.planned(*EVERYTHING) if "tiny/" in message} == {
        *("train tiny/taught, seed 0", "evaluate tiny/taught, seed 0", "profile tiny/taught"),
    }


def check_restored(clone: Checkout, original: Checkout) -> None:
    """Every result and every raw image comes back, with the same bytes."""
    result = restore(clone)
    assert result.returncode == 0, result.stdout
    for folder in ("data/tiny", "results/datasets/tiny", "results/tiny", "results/tables"):
        there, here = ({path.relative_to(each.folder) for path in (each.folder / folder).rglob("*") if path.is_file()}
                       for each in (original, clone))  # fmt: skip
        assert there == here != set()
        for name in there:
            assert (clone.folder / name).read_bytes() == (original.folder / name).read_bytes(), name


def check_damage_is_refused(clone: Checkout) -> str:
    """By us, and from then on by DVC itself; what we say of it."""
    result = restore(clone)
    assert result.returncode == 2
    assert last_line(result).startswith(f"distillery: {WEIGHTS}: did not come whole, so nothing was restored")
    assert clone.run("dvc", "pull", "experiment@tiny").returncode != 0
    assert not (clone.folder / WEIGHTS).exists()
    return result.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def ssh_server(tmp_path):
    """A server for this user alone, with keys of its own: its port and the key that opens it."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    if sshd is None:
        pytest.skip("needs sshd: apt-get install openssh-server")
    Path("/run/sshd").mkdir(exist_ok=True) if os.getuid() == 0 else None
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    port = free_port()
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\n"
        f"PidFile {tmp_path}/sshd.pid\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        "Subsystem sftp internal-sftp\n"
    )
    process = subprocess.Popen([sshd, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=subprocess.DEVNULL)
    wait_for(port)
    yield port, tmp_path / "user"
    process.terminate()
    process.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.05)


def test_ssh(recorded_copy, ssh_server, tmp_path):
    port, key = ssh_server
    options = (("port", str(port)), ("user", getpass.getuser()), ("keyfile", str(key)))
    configure(recorded_copy, *options, url=f"ssh://127.0.0.1{tmp_path}/far/store")
    result = save(recorded_copy)
    assert result.returncode == 0, result.stdout
    commit_all(recorded_copy)
    clone = fresh_clone(recorded_copy, tmp_path / "clone" / "distillery")
    assert str(key) not in clone.read(".dvc/config")
    configure(clone, *options, url=f"ssh://127.0.0.1{tmp_path}/far/store")
    check_restored(clone, recorded_copy)


class Faults:
    """Stands before a server and drops connections after a number of uploads."""

    def __init__(self, application):
        self.application = application
        self.uploads_left: int | None = None
        self.lock = threading.Lock()

    def __call__(self, environment, start_response):
        if environment["REQUEST_METHOD"] == "PUT":
            with self.lock:
                if self.uploads_left == 0:
                    raise ConnectionAbortedError
                if self.uploads_left is not None:
                    self.uploads_left -= 1
        return self.application(environment, start_response)


@contextmanager
def s3_server():
    """An S3 server in this process, with a bucket: its address, its faults and a client."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    faults = Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, faults, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=url, **keys)
    client.create_bucket(Bucket="bucket")
    yield url, faults, client
    server.shutdown()
    thread.join()


def test_s3_and_a_push_that_is_cut(recorded_copy, tmp_path):
    with s3_server() as (url, faults, client):
        options = (("endpointurl", url), ("access_key_id", "key"), ("secret_access_key", "secret"))
        recorded_copy.environment |= {"AWS_MAX_ATTEMPTS": "1", "AWS_DEFAULT_REGION": "us-east-1"}
        configure(recorded_copy, *options, url="s3://bucket/distillery")
        before = recorded_copy.read("dvc.lock")

        faults.uploads_left = 15
        cut = save(recorded_copy)
        assert cut.returncode == 2
        assert last_line(cut).startswith("distillery: the push stopped. What has arrived stays there")
        assert recorded_copy.read("dvc.lock") == before
        assert recorded_copy.run("dvc", "status", "--quiet").returncode == 0

        faults.uploads_left = None
        rest = save(recorded_copy)
        assert rest.returncode == 0, rest.stdout
        sent = int(re.search(r"(\d+) files? pushed", rest.stdout)[1])
        assert sent < len(list((recorded_copy.folder / ".dvc" / "cache" / "files").glob("*/*/*")))

        commit_all(recorded_copy)
        clone = fresh_clone(recorded_copy, tmp_path / "clone" / "distillery")
        assert "secret" not in clone.read(".dvc/config")
        configure(clone, *options, url="s3://bucket/distillery")
        weights = {"Bucket": "bucket", "Key": str(object_of(Path("distillery"), recorded_copy, WEIGHTS))}
        whole = client.get_object(**weights)["Body"].read()
        client.put_object(**weights, Body=whole[:-1] + bytes([whole[-1] ^ 1]))
        check_damage_is_refused(clone)
        client.put_object(**weights, Body=whole)
        check_restored(clone, recorded_copy)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_damaged_object_of_a_folder_is_refused_and_sent_again(stored, tmp_path):
    original, store, clone = stored
    lost = object_of(store, original, WEIGHTS)
    damage(lost)
    named = re.search(r"delete (\S+) and (\S+\.dir) there, make save", check_damage_is_refused(clone))
    assert named
    assert store / named[1] == lost
    for name in named.groups():
        (store / name).unlink()
    (tmp_path / "source").mkdir()
    source = copy(original.folder, tmp_path / "source" / "distillery")
    source.run("dvc", "remote", "modify", "--local", "store", "url", str(store))
    assert "2 files pushed" in save(source).stdout
    assert restore(clone).returncode == 0


def test_what_is_missing_in_the_remote_is_reported_and_nothing_put_in_place(stored):
    original, store, clone = stored
    object_of(store, original, WEIGHTS).unlink()
    result = restore(clone)
    assert result.returncode == 2
    assert last_line(result).startswith("distillery: results/tiny: did not come whole, so nothing was restored")
    assert not (clone.folder / TABLE).exists()


def test_a_damaged_cache_is_mended_before_it_is_sent(recorded_copy, tmp_path):
    configure(recorded_copy, url=str(tmp_path / "store"))
    whole = (recorded_copy.folder / WEIGHTS).read_bytes()
    cached = object_of(recorded_copy.folder / ".dvc" / "cache", recorded_copy, WEIGHTS)
    damage(cached)
    result = save(recorded_copy)
    assert result.returncode == 0, result.stdout
    assert f"Damaged in the cache: {WEIGHTS}; taken from the results again" in result.stdout
    sent = object_of(tmp_path / "store", recorded_copy, WEIGHTS)
    assert sent.read_bytes() == cached.read_bytes() == (recorded_copy.folder / WEIGHTS).read_bytes() == whole

    damage(cached)
    damage(recorded_copy.folder / WEIGHTS)
    result = save(recorded_copy)
    assert result.returncode == 2
    assert last_line(result).startswith(f"distillery: {WEIGHTS}: damaged, and its copy in the cache too")


def test_a_locked_store_is_reported(stored):
    _, _, clone = stored
    folder = clone.folder / ".dvc" / "tmp"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = restore(clone)
    assert result.returncode == 2
    assert "Unable to acquire lock" in result.stdout
    assert "Traceback" not in result.stdout


@pytest.mark.parametrize("name", [TABLE, "results/tiny/own/seed0/weights.safetensors"])
def test_files_of_ones_own_are_not_overwritten(stored, name):
    _, _, clone = stored
    (clone.folder / name).parent.mkdir(parents=True)
    clone.write(name, "My own.\n")
    result = restore(clone)
    assert result.returncode == 2
    assert name in result.stdout
    assert last_line(result).startswith("distillery: files of your own are in the way")
    assert clone.read(name) == "My own.\n"


@pytest.mark.parametrize(
    ("file", "old", "new", "refused"),
    [
        (
            "config/tiny.yaml",
            "kd: {weight: 0.5}",
            "kd: {weight: 0.4}",
            f"{RECORD}: digest is [0-9a-f]{{16}}, but would",
        ),
        (
            "config/datasets.yaml",
            "tiny: {",
            "tiny: {embed: false, ",
            "config/datasets.yaml: dataset@tiny was recorded with",
        ),
        ("data.dvc", "nfiles: 36", "nfiles: 35", "data.dvc: dataset@tiny was recorded with"),
    ],
)
def test_a_checkout_that_would_make_other_results_gets_none(stored, file, old, new, refused):
    """Snakemake would take them for its own: it knows nothing of files that it did not make."""
    _, _, clone = stored
    clone.replace(file, old, new)
    result = restore(clone)
    assert result.returncode == 2
    assert re.match(f"distillery: {refused}", last_line(result))
    assert not (clone.folder / WEIGHTS).exists()


def test_new_runs_and_tables_with_another_layout_are_left_to_make(stored):
    _, _, clone = stored
    clone.replace("config/tiny.yaml", "top1, nll,", "top1,")
    clone.replace("config/tiny.yaml", "    small:", "    new: {model: cifar_resnet8, recipe: tiny}\n    small:")
    assert restore(clone).returncode == 0
    assert clone.planned(*EVERYTHING) == {
        *("train tiny/new, seed 0", "evaluate tiny/new, seed 0"),
        *("assemble the tables of tiny", "draw the figures of tiny"),
    }


def test_saving_and_restoring_need_a_remote(recorded_copy):
    for command in (save, restore):
        result = command(recorded_copy)
        assert result.returncode == 2
        assert last_line(result).startswith("distillery: no remote; e.g. dvc remote add")
