"""One process at a time works on a run, on one machine or on many that share a file system.

The lock is a file: its content says who owns the run, its date is the owner's heartbeat. A dead owner's file is
replaced. Two that do so at the same moment may both go on for a heartbeat; that is wasteful and not wrong, for files
appear whole and the same run gives the same bytes. The one whose file was replaced ends.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from distillery.atomic import write_json
from distillery.cluster.gpus import GRANTED
from distillery.errors import UserError
from distillery.paths import regular

HEARTBEAT_SECONDS = 5.0
# An owner on another machine that is silent for so long is dead: longer than a file server's pause.
DEATH_SECONDS = 60.0
# A job that was asked to stop may go on saving for as long as Slurm lets it (KillWait, 30 seconds by default).
HANDOVER_SECONDS = 45.0
# So often nobody releases a lock between two looks.
MOST_RELEASES = 1000


@dataclass(frozen=True)
class Owner:
    """Who works on a run."""

    token: str
    machine: str
    process: int
    started: str  # distinguishes the process from a later one with its number
    slurm_job: str | None
    since: str
    device: str | None = None  # the GPUs that it was granted; not in locks of the first releases

    def __str__(self) -> str:
        job = f"Slurm job {self.slurm_job}, " if self.slurm_job else ""
        return f"{job}process {self.process} on {self.machine}, since {self.since}"


class RunLock:
    """The right to work on a run, kept alive by a thread until it is released."""

    def __init__(self, path: Path, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self.path = path
        self.heartbeat_seconds = heartbeat_seconds
        self.waited = False  # for a living owner, who may have finished the run
        self._owner = _this_process()
        self._released = threading.Event()

    def acquire(self, death_seconds: float = DEATH_SECONDS, patience_seconds: float = 0.0) -> None:
        """Become the owner, once no other process is. A living owner gets ``patience_seconds`` to end.

        Whether an owner on another machine lives is known after a heartbeat, or after ``death_seconds`` without one.

        Raises:
            UserError: another process works on the run.
        """
        deadline, released = time.monotonic() + patience_seconds, 0
        while not self._create():
            owner = _read(self.path)
            if owner is None:
                released += 1
                if released > MOST_RELEASES:
                    raise UserError(f"{self.path}: cannot be written: a folder that takes none, or a link to nowhere")
                continue
            if self._is_dead(owner, death_seconds):
                if not self._replace(owner):
                    continue
                print(f"{self.path}: its former owner is dead ({owner}); taking over", file=sys.stderr, flush=True)
                break
            self.waited = True
            if time.monotonic() >= deadline:
                owner = _read(self.path) or owner
                stop = f"scancel {owner.slurm_job}" if owner.slurm_job else "stop it"
                raise UserError(
                    f"{self.path}: another process works on this run ({owner}); let it end, or {stop}, then start again"
                )
            self._pause()
        threading.Thread(target=self._beat, daemon=True).start()

    def check(self) -> None:
        """Make sure that this process is still the owner, before it writes results.

        Raises:
            UserError: it was taken for dead, and another process works on the run now.
        """
        owner = _read(self.path)
        if owner is None or owner.token != self._owner.token:
            raise UserError(
                f"{self.path}: this process ({self._owner}) was silent for so long that it was taken for dead; "
                f"now working there: {owner or 'no process'}. It stops and leaves the run to it"
            )

    def release(self) -> None:
        """Let others work on the run, and remove the folders that are empty now."""
        self._released.set()
        owner = _read(self.path)
        if owner is not None and owner.token == self._owner.token:
            self.path.unlink(missing_ok=True)
        with suppress(OSError):
            for folder in self.path.parents[:3]:  # seed<k>, <run>, <experiment>
                folder.rmdir()

    def _create(self) -> bool:
        """Write the file, unless there is one."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("x", encoding="utf-8") as file:
                json.dump(asdict(self._owner), file)
        except (FileExistsError, FileNotFoundError):  # not found: who released a lock also removed the folder
            return False
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error
        return True

    def _replace(self, dead: Owner) -> bool:
        """Take over a dead owner's file, unless another process does."""
        if _read(self.path) == dead:
            write_json(self.path, asdict(self._owner))
            self._pause()
        return _read(self.path) == self._owner

    def _is_dead(self, owner: Owner, death_seconds: float) -> bool:
        """Whether an owner is gone. On this machine its process is looked up; elsewhere its heartbeat is watched."""
        if owner.started and owner.machine == self._owner.machine:
            return _started(owner.process) != owner.started
        if owner.slurm_job is not None and owner.slurm_job == self._owner.slurm_job:
            # Slurm lost that machine and started this job again. An old process that lives ends at its next heartbeat.
            return True
        first, deadline = _date(self.path), time.monotonic() + death_seconds
        while time.monotonic() < deadline:
            self._pause()
            if _date(self.path) != first:
                return False  # it lives, or was released or replaced
        return True

    def _beat(self) -> None:
        """Show that this process lives; end it if it was taken for dead meanwhile."""
        while not self._released.wait(self.heartbeat_seconds):
            # A file server that is away for a while is no reason to stop.
            with suppress(OSError):
                try:
                    self.check()
                    os.utime(self.path)
                except UserError as error:
                    if not self._released.is_set():
                        print(f"distillery: {error}", file=sys.stderr, flush=True)
                        # At once, from a thread: whatever the main thread would still write is the successor's.
                        os._exit(2)

    def _pause(self) -> None:
        time.sleep(min(self.heartbeat_seconds, 0.5))


def look(path: Path, death_seconds: float = DEATH_SECONDS) -> tuple[Owner, float | None] | None:
    """Who owns a lock, and for how many seconds he has been silent, None while he lives; None if there is no lock.

    Nothing is waited for, so that an owner on another machine lives as long as his last heartbeat is recent by this
    machine's clock.
    """
    try:
        owner, silent = _read(path), time.time() - _date(path) / 1e9
    except OSError:
        return None
    if owner is None:
        return None
    if owner.started and owner.machine == socket.gethostname():
        lives = _started(owner.process) == owner.started
    else:
        lives = silent < death_seconds
    return owner, None if lives else silent


@contextmanager
def locked(path: Path) -> Iterator[RunLock | None]:
    """Hold the lock of a run while it is made; of the processes that make it together, the first one does.

    In a Slurm job, a living owner is waited for: a cancelled job still saves while the job after it starts.

    Raises:
        UserError: another process works on this run.
    """
    if os.environ.get("RANK", "0") != "0":
        yield None
        return
    lock = RunLock(path)
    lock.acquire(patience_seconds=HANDOVER_SECONDS if "SLURM_JOB_ID" in os.environ else 0.0)
    try:
        yield lock
    finally:
        lock.release()


def _this_process() -> Owner:
    process = os.getpid()
    since, job = time.strftime("%Y-%m-%d %H:%M:%S"), os.environ.get("SLURM_JOB_ID")
    return Owner(uuid4().hex, socket.gethostname(), process, _started(process), job, since, os.environ.get(GRANTED))


def _started(process: int) -> str:
    """When a process started, in the kernel's ticks; empty if it has ended, or if there is no /proc."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else fields[18]


def _read(path: Path) -> Owner | None:
    """Who owns a lock; None if there is none."""
    try:
        return Owner(**json.loads(regular(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError):  # being written, or left empty by a machine that lost its power
        return Owner("", "an unknown machine", 0, "", None, "an unknown time")


def _date(path: Path) -> int:
    """A lock's newest heartbeat; -1 if it is gone."""
    try:
        with regular(path).open("rb") as file:  # NFS asks its server when a file is opened, and else may not
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return -1
