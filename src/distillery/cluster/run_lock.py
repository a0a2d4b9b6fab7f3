"""One process at a time in a run's folder, on one machine or on many that share a file system.

A lock is a file ``<name>.<generation>`` in the folder of unfinished work. Its content says who owns it, its date is the
owner's heartbeat. Who finds a lock whose owner is dead makes the next generation. Making a file of a name that must not
exist yet is what every file system, NFS included, grants to one client alone, so of two who take over, one wins;
nothing has to be deleted first. Dates are compared with themselves only, never with this machine's clock.
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

from distillery.errors import UserError

BEAT_SECONDS = 5.0
# An owner elsewhere that lets so much time pass without a heartbeat is dead: long enough for a file server's pause.
DEATH_SECONDS = 60.0
# A job that was told to stop may go on saving for as long as Slurm lets it (KillWait, 30 seconds by default).
HANDOVER_SECONDS = 45.0


@dataclass(frozen=True)
class Owner:
    """Who works in a run's folder."""

    token: str
    machine: str
    processes: str  # the namespace and the boot in which its process number means something
    process: int
    started: str  # when its process did, for numbers are used again
    slurm_job: str | None
    since: str

    def __str__(self) -> str:
        job = f"Slurm job {self.slurm_job}, " if self.slurm_job else ""
        return f"{job}process {self.process} on {self.machine}, since {self.since}"


class RunLock:
    """The right to work in one run's folder, kept alive by a thread until it is released."""

    def __init__(self, folder: Path, name: str, beat_seconds: float = BEAT_SECONDS) -> None:
        self.folder = folder
        self.name = name
        self.beat_seconds = beat_seconds
        self.owner = _this_process()
        self.path: Path | None = None
        self.waited = False  # for a living owner, who may have finished what was to be done
        self._released = threading.Event()

    def acquire(self, death_seconds: float = DEATH_SECONDS, patience_seconds: float = 0.0) -> None:
        """Become the owner, at once if nobody is.

        An owner on another machine is watched until its heart beats, or until it is known to be dead. A living owner is
        given ``patience_seconds`` to end: a job that was told to stop is still saving while its successor starts.

        Raises:
            UserError: somebody else works there.
        """
        began = time.monotonic()
        while found := self._all():
            owner = _read(found[-1])
            if owner is None:
                continue  # released while we looked
            if not _is_dead(found[-1], owner, death_seconds, self.beat_seconds):
                self.waited = True
                if time.monotonic() - began >= patience_seconds:
                    raise self._occupied(owner)
                time.sleep(min(self.beat_seconds, 0.5))
                continue
            print(f"{self}: its former owner is dead ({owner}); taking over", file=sys.stderr, flush=True)
            break
        self._create(found)
        threading.Thread(target=self._beat, daemon=True).start()

    def check(self) -> None:
        """Make sure that this process is still the owner, before it writes anything.

        Raises:
            UserError: it was taken for dead, and somebody else works there now.
        """
        assert self.path is not None
        newest = self._newest()
        owner = None if newest is None else _read(newest)
        if owner is None or owner.token != self.owner.token:
            successor = "nobody" if owner is None else owner
            raise UserError(
                f"{self}: this process ({self.owner}) was silent for so long that it was taken for dead; "
                f"now working there: {successor}. It stops and leaves the run to it"
            )

    def release(self) -> None:
        """Let others work there."""
        self._released.set()
        if self.path is not None:
            owner = _read(self.path)
            if owner is not None and owner.token == self.owner.token:
                self.path.unlink(missing_ok=True)
            self.path = None

    def _create(self, dead: list[Path]) -> None:
        """Make the next generation after those of the dead, unless somebody else is quicker."""
        self.folder.mkdir(parents=True, exist_ok=True)
        generation = _generation(dead[-1]) + 1 if dead else 1
        path = self.folder / f"{self.name}.{generation}"
        draft = self.folder / f".{self.name}.{self.owner.token}"
        # Linked, not opened: the name appears together with its content.
        draft.write_text(json.dumps(asdict(self.owner)), encoding="utf-8")
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            raise self._occupied(_read(path)) from None
        finally:
            draft.unlink()
        self.path = path
        # Whoever created another generation meanwhile sees this one, or is seen here: one of us, or both, steps back.
        others = [other for other in self._all() if other != path and other not in dead]
        if others:
            owner = _read(others[-1])
            self.release()
            raise self._occupied(owner)
        for left in dead:
            left.unlink(missing_ok=True)

    def _beat(self) -> None:
        """Show that this process lives; end it if it was taken for dead meanwhile."""
        while not self._released.wait(self.beat_seconds):
            path = self.path
            if path is None:
                return
            with suppress(OSError):
                os.utime(path)
            # A file server that is away for a while is no reason to stop.
            with suppress(OSError):
                self._check_and_end()

    def _check_and_end(self) -> None:
        try:
            self.check()
        except UserError as error:
            if not self._released.is_set():
                print(f"distillery: {error}", file=sys.stderr, flush=True)
                # At once, from a thread: whatever the main thread would still write belongs to the successor.
                os._exit(2)

    def _all(self) -> list[Path]:
        """All generations that exist, the newest last."""
        names = self.folder.iterdir() if self.folder.exists() else []
        found = (path for path in names if path.stem == self.name and path.suffix[1:].isdecimal())
        return sorted(found, key=_generation)

    def _newest(self) -> Path | None:
        found = self._all()
        return found[-1] if found else None

    def _occupied(self, owner: Owner | None) -> UserError:
        who = "another process" if owner is None else owner
        hint = f"scancel {owner.slurm_job}" if owner is not None and owner.slurm_job else "stop it"
        return UserError(f"{self}: somebody works on this run ({who}); let it end, or {hint}, then start again")

    def __str__(self) -> str:
        return str(self.folder / self.name)


@contextmanager
def locked(path: Path) -> Iterator[RunLock | None]:
    """Hold the lock of a run while it is made; of the processes that make it together, the first one does.

    In a Slurm job, a living owner is waited for: a cancelled job still saves while the job after it starts.

    Raises:
        UserError: somebody else works on this run.
    """
    if os.environ.get("RANK", "0") != "0":
        yield None
        return
    lock = RunLock(path.parent, path.name)
    lock.acquire(patience_seconds=HANDOVER_SECONDS if "SLURM_JOB_ID" in os.environ else 0.0)
    try:
        yield lock
    finally:
        lock.release()


def _is_dead(path: Path, owner: Owner, death_seconds: float, beat_seconds: float) -> bool:
    """Whether a lock's owner is gone. On its own machine the process is looked up; elsewhere its heart is watched."""
    here = _this_process()
    if (owner.machine, owner.processes) == (here.machine, here.processes):
        return _started(owner.process) != owner.started
    if owner.slurm_job is not None and owner.slurm_job == here.slurm_job:
        # Slurm lost that machine and started this job again. If the old process lives, it stops at its next heartbeat.
        return True
    first, began = _date(path), time.monotonic()
    while time.monotonic() - began < death_seconds:
        time.sleep(min(beat_seconds, 0.5))
        if _date(path) != first:
            return False  # it beats, or was released
    return True


def _this_process() -> Owner:
    return Owner(
        token=uuid4().hex,
        machine=socket.gethostname(),
        processes=_process_space(),
        process=os.getpid(),
        started=_started(os.getpid()),
        slurm_job=os.environ.get("SLURM_JOB_ID"),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
    )


def _process_space() -> str:
    """Where process numbers are unique: one boot of one machine, or of one container on it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{Path('/proc/self/ns/pid').readlink()} {boot.read_text(encoding='utf-8').strip()}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a process started, in the kernel's ticks; empty if there is none, or if it is a zombie."""
    try:
        state, *facts = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return "" if Path("/proc/self").exists() else _answers(process)
    return "" if state == "Z" else facts[18]


def _answers(process: int) -> str:
    """The same where there is no /proc: whether it lives is all that is known."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "unknown"


def _read(path: Path) -> Owner | None:
    """Who owns a lock; None if it is gone."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except OSError:
        return None
    except (ValueError, TypeError):  # a machine that lost its power may leave an empty file
        return Owner("", "an unknown machine", "", 0, "", None, "an unknown time")


def _date(path: Path) -> int:
    """A lock's newest heartbeat; opened, for NFS asks its server only then. -1 if the lock is gone."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return -1


def _generation(path: Path) -> int:
    return int(path.suffix[1:])
