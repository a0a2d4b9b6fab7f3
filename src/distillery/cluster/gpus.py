"""A workstation's GPUs: a job gets some for itself, by a lock file a device that the kernel releases when the job ends.

    python -m distillery.cluster.gpus COUNT JOBS_PER_GPU COMMAND [ARGUMENT...]

becomes the command, which sees COUNT devices and no others, once so many are free. A device has at most JOBS_PER_GPU
such jobs; with 1, none beside it. A machine without GPUs runs the command as it is.
"""

import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from distillery.errors import UserError

# The granted devices as people call them, for `distillery status`.
GRANTED = "DISTILLERY_GPUS"
# How the line of a job that waits begins, for the same.
WAITING = "waiting for a GPU"
VISIBLE = "CUDA_VISIBLE_DEVICES"
# All users' jobs meet here; a machine's own folder, for its devices are.
LOCKS = Path("/tmp/distillery-gpus")
WAIT_SECONDS = 0.2

_GPU = re.compile(r"GPU (\d+): (.+) \(UUID: ([^)\s]+)\)")
_PART = re.compile(r"\s+MIG .*\(UUID: ([^)\s]+)\)")


@dataclass(frozen=True)
class Device:
    """A GPU, or a part of one (MIG)."""

    uuid: str  # or whatever CUDA_VISIBLE_DEVICES calls it
    gpu: str = ""  # nvidia-smi's number
    part: int | None = None
    product: str = ""

    @property
    def label(self) -> str:
        """What people call it."""
        part = "" if self.part is None else f" part {self.part}"
        return f"GPU {self.gpu or self.uuid}{part}"


def all_devices() -> list[Device]:
    """The machine's devices, as nvidia-smi lists them; none where there is no nvidia-smi, or where it fails."""
    try:
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return []
    except (OSError, subprocess.TimeoutExpired) as error:
        said = subprocess.CompletedProcess([], 1, "", str(error))
    if said.returncode:
        reason = " ".join((said.stderr or said.stdout).split())
        print(f"distillery: warning: nvidia-smi fails, so that no GPU is dealt out: {reason}", file=sys.stderr)
        return []
    devices: list[Device] = []
    for line in said.stdout.splitlines():
        if gpu := _GPU.match(line):
            devices.append(Device(gpu[3], gpu[1], product=gpu[2]))
        elif (part := _PART.match(line)) and devices:
            last = devices[-1]
            if last.part is None:  # a GPU in parts is none itself
                devices.pop()
            devices.append(Device(part[1], last.gpu, 0 if last.part is None else last.part + 1, last.product))
    return devices


def visible_devices(environment: Mapping[str, str]) -> list[Device]:
    """The devices that jobs may be given: all, or those that CUDA_VISIBLE_DEVICES allows.

    As for CUDA, what stands behind a name that is no device is not seen.

    Raises:
        UserError: it is not certain which devices are meant.
    """
    there, wanted = all_devices(), environment.get(VISIBLE)
    if wanted is None:
        return there
    names = [name.strip() for name in wanted.split(",")]
    ordered = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({device.product for device in there}) < 2
    if not ordered and any(name.isdigit() for name in names):
        raise UserError(
            f"{VISIBLE}={wanted}: CUDA counts different GPUs in another order than nvidia-smi; "
            "export CUDA_DEVICE_ORDER=PCI_BUS_ID, or name them by the UUIDs of nvidia-smi -L"
        )
    found: dict[Device, None] = {}
    for name in names:
        if name in ("", "-1", "NoDevFiles"):
            break
        # Of a GPU in parts, its number means all of them. A UUID may be shortened.
        meant = [each for each in there if each.gpu == name or (not name.isdigit() and each.uuid.startswith(name))]
        if there and not meant:
            break
        found |= dict.fromkeys(meant or [Device(name)])
    return list(found)


def count_devices() -> int:
    """How many devices jobs may be given on this machine."""
    return len(visible_devices(os.environ))


def workers_each(jobs: int) -> int:
    """How many processes each of so many jobs at once may have to read its images, by the machine's cores."""
    return max(1, min(8, (os.cpu_count() or 1) // max(jobs, 1) - 1))


# --- holding devices -------------------------------------------------------------------------------------------------


def hold(
    devices: Sequence[Device], count: int, jobs_per_gpu: int, folder: Path = LOCKS
) -> tuple[list[Device], list[int]]:
    """Wait until some of the devices are free, and hold them.

    Returns them, and the open files that hold them: until these are closed, in this process and all that it became or
    handed them to. Jobs are served one after the other, so that none that wants several, or one alone, waits for ever.

    Raises:
        UserError: there are fewer.
    """
    if count > len(devices):
        names = ", ".join(device.label for device in devices)
        raise UserError(
            f"gpu: {count} GPUs are asked for, but there are {len(devices)} ({names}); ask for fewer in the profile's "
            f"set-resources, or allow more by {VISIBLE}"
        )
    _make(folder)
    waiting = _Waiting(f"{WAITING}: {count} of {len(devices)} wanted, others have them")
    held: dict[Device, list[int]] = {}
    with ExitStack() as doors:
        # In one order, so that no two jobs wait for each other.
        for device in sorted(devices, key=lambda each: each.uuid):
            while (door := _lock(folder / f"{_file_name(device)}.door", fcntl.LOCK_EX)) is None:
                waiting.pause()
            doors.callback(os.close, door)
        while True:
            for place in range(jobs_per_gpu):  # those with the fewest jobs first
                for device in devices:
                    if len(held) < count and device not in held:
                        files = _take(folder / _file_name(device), place if jobs_per_gpu > 1 else None)
                        held |= {device: files} if files else {}
            if len(held) == count:
                break
            waiting.pause()
    chosen = [device for device in devices if device in held]
    return chosen, [file for device in chosen for file in held[device]]


def _take(path: Path, place: int | None) -> list[int]:
    """Lock a device whole, or one of its places, and it against whoever wants it whole; nothing where it is taken."""
    whole = _lock(Path(f"{path}.lock"), fcntl.LOCK_EX if place is None else fcntl.LOCK_SH)
    if whole is None or place is None:
        return [] if whole is None else [whole]
    part = _lock(Path(f"{path}.{place}.lock"), fcntl.LOCK_EX)
    if part is None:
        os.close(whole)
        return []
    return [whole, part]


class _Waiting:
    """Says once that a job waits, and keeps its log young, by which `distillery status` sees that it lives."""

    def __init__(self, line: str) -> None:
        self.line, self.said = line, False

    def pause(self) -> None:
        """Wait a little."""
        if not self.said:
            print(self.line, file=sys.stderr, flush=True)
        self.said = True
        with suppress(OSError):
            os.utime(sys.stderr.fileno())
        time.sleep(WAIT_SECONDS)


def _lock(path: Path, kind: int) -> int | None:
    """Open and lock a file, whoever has made it: that takes no right to write. None where it is taken."""
    try:
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            file = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened: {error.strerror}; remove it") from error
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _file_name(device: Device) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", device.uuid)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o777)
        folder.chmod(0o1777)
    except FileExistsError:
        pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error


def main(arguments: Sequence[str]) -> int:
    """Hold devices, and become the command."""
    count, jobs_per_gpu, command = int(arguments[0]), int(arguments[1]), list(arguments[2:])
    try:
        devices = visible_devices(os.environ) if count else []
        if devices:
            folder = Path(os.environ.get("DISTILLERY_GPU_LOCKS", LOCKS))
            chosen, files = hold(devices, count, max(jobs_per_gpu, 1), folder)
            for file in files:
                os.set_inheritable(file, True)
            os.environ[VISIBLE] = ",".join(device.uuid for device in chosen)
            os.environ[GRANTED] = ", ".join(device.label for device in chosen)
    except UserError as error:
        print(f"distillery: {error}", file=sys.stderr)
        return 2
    sys.stderr.flush()
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
