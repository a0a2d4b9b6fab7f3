"""A real Slurm cluster on this one machine: two nodes with fake GPUs, started and stopped in a second.

Needs root and Debian's slurm-wlm and munge (with accounting also slurmdbd and mariadb-server). Slurm finds its
configuration in /etc/slurm only, for a job's environment keeps no SLURM_CONF; what lay there is put back afterwards.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

CONFIGURATION = Path("/etc/slurm")
FILES = ("slurm.conf", "gres.conf", "slurmdbd.conf", "cgroup.conf")
NODES = ("n1", "n2")
PORT = int(os.environ.get("TEST_SLURM_PORT", "16817"))  # the first of four
PROGRAMS = ("slurmctld", "slurmd", "munged", "sinfo", "squeue", "scontrol", "srun")

# Every node claims more cores and memory than there are (config_overrides), as much as the profile asks for: one
# training with one GPU fills a node, so two of them run at once, on two real cores.
SLURM_CONF = """
ClusterName=toy
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
MpiDefault=none
ReturnToService=2
MinJobAge=300
KillWait=15
SlurmdTimeout=10
SchedulerParameters=sched_interval=2,batch_sched_delay=1,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmctldPort={port}
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
NodeName=DEFAULT CPUs=8 RealMemory=64000 Gres=gpu:2
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first_port}-{last_port}]
PartitionName=gpu Nodes=n[1-2] Default=YES MaxTime=2-00:00:00 PriorityTier=1
PartitionName=short Nodes=n[1-2] MaxTime=00:02:00 PriorityTier=1
PartitionName=cancelled Nodes=n[1-2] MaxTime=2-00:00:00 PriorityTier=1 PreemptMode=CANCEL GraceTime={grace}
PartitionName=urgent Nodes=n[1-2] MaxTime=01:00:00 PriorityTier=10 PreemptMode=OFF
{accounting}
"""
NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"
ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={database_port}
AccountingStoreFlags=job_comment
AccountingStorageEnforce=limits
AccountingStorageTRES=gres/gpu
"""
SLURMDBD_CONF = """
AuthType=auth/munge
DbdHost=localhost
DbdPort={database_port}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=13306
StorageUser=root
StoragePass=toy
StorageLoc=slurm_acct_db
"""


class Cluster:
    """A cluster with its files in one folder."""

    def __init__(self, folder: Path, accounting: bool = False, grace: int = 20) -> None:
        self.folder = folder
        self.accounting = accounting
        self.grace = grace
        self.kept: dict[str, bytes] = {}
        self.maintenance = False

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring up munge, the controller and both nodes; idle when this returns."""
        for name in ("state", "dev", "munge"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._configure()
        self._start_munge()
        if self.accounting:
            self._start_database()
        run("slurmctld", "-c", "-i")
        for node in NODES:
            self.start_node(node)
        self.wait_until(lambda: self.node_states() == ["idle", "idle"], "both nodes idle", seconds=60)

    def stop(self) -> None:
        """End every job and every daemon, and put back the configuration that was there before."""
        with suppress(Exception):
            self.end_jobs()
        pids = [self.folder / f"slurmd-{node}.pid" for node in NODES]
        pids += [self.folder / f"{name}.pid" for name in ("slurmctld", "slurmdbd", "mariadb", "munge/munged")]
        for pid in pids:
            end_process(pid)
        for name in FILES:
            (CONFIGURATION / name).unlink(missing_ok=True)
        for name, content in self.kept.items():
            (CONFIGURATION / name).write_bytes(content)

    def start_node(self, node: str) -> None:
        """Boot a node."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        run("slurmd", "-N", node)

    def kill_node(self, node: str) -> list[int]:
        """Pull the plug of a node: its daemon and all its jobs' processes, at once. Returns what was killed."""
        daemon = int((self.folder / f"slurmd-{node}.pid").read_text())
        steps = [int(pid) for pid in run("pgrep", "--full", r"slurmstepd: \[[0-9]+\..*", check=False).split()]
        here = [pid for pid in steps if f"{self.folder}/slurmd-{node}.log" in open_files(pid)]
        victims = [daemon, *here, *(child for pid in here for child in descendants(pid))]
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return victims

    def _configure(self) -> None:
        CONFIGURATION.mkdir(exist_ok=True)
        for name in FILES:
            if (CONFIGURATION / name).exists():
                self.kept[name] = (CONFIGURATION / name).read_bytes()
        facts = {"folder": self.folder, "host": socket.gethostname().split(".")[0], "grace": self.grace}
        names = ("port", "database_port", "first_port", "last_port")
        facts |= {name: PORT + number for number, name in enumerate(names)}
        accounting = (ACCOUNTING if self.accounting else NO_ACCOUNTING).format(**facts)
        (CONFIGURATION / "slurm.conf").write_text(SLURM_CONF.format(**facts, accounting=accounting))
        # Plain files would be counted but leave CUDA_VISIBLE_DEVICES empty; a count alone drains the node.
        for number in range(2):
            device = self.folder / "dev" / f"gpu{number}"
            if not device.exists():
                run("mknod", str(device), "c", "1", "3")
        gres = f"NodeName=n[1-2] Name=gpu File={self.folder}/dev/gpu[0-1]\n"
        (CONFIGURATION / "gres.conf").write_text(gres)
        if self.accounting:
            path = CONFIGURATION / "slurmdbd.conf"
            path.write_text(SLURMDBD_CONF.format(**facts))
            path.chmod(0o600)

    def _start_munge(self) -> None:
        # At its usual place, where the programs look for it; with files of its own beside it.
        run("install", "-d", "-o", "munge", "-m", "0755", "/run/munge", str(self.folder / "munge"))
        for parent in self.folder.parents:
            if parent.owner() == "root" and parent.name:
                parent.chmod(parent.stat().st_mode | 0o011)
        self.folder.chmod(0o755)
        command = ["munged", "--force", f"--pid-file={self.folder}/munge/munged.pid"]
        command += [f"--log-file={self.folder}/munge/munged.log", f"--seed-file={self.folder}/munge/munged.seed"]
        run("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", *command)

    def _start_database(self) -> None:
        data = self.folder / "mariadb"
        data.mkdir(exist_ok=True)
        run("mariadb-install-db", f"--datadir={data}", "--user=root", "--auth-root-authentication-method=normal")
        log = (self.folder / "mariadb.log").open("w")
        options = ["--no-defaults", "--user=root", "--port=13306", "--bind-address=127.0.0.1", "--skip-name-resolve"]
        options += [
            f"--datadir={data}",
            f"--socket={self.folder}/mariadb.sock",
            f"--pid-file={self.folder}/mariadb.pid",
        ]
        subprocess.Popen(["mariadbd", *options], stdout=log, stderr=log, start_new_session=True)
        client = ["mariadb", "--no-defaults", "-u", "root", f"--socket={self.folder}/mariadb.sock", "-e"]
        self.wait_until(lambda: succeeds(*client, "SELECT 1"), "the database", seconds=30)
        grant = "CREATE OR REPLACE USER root@'127.0.0.1' IDENTIFIED BY 'toy'; GRANT ALL ON *.* TO root@'127.0.0.1';"
        run(*client, grant)
        run("slurmdbd")
        self.wait_until(lambda: succeeds("sacctmgr", "-n", "list", "cluster"), "slurmdbd", seconds=30)
        for line in ("add cluster toy", "add account lab", "add user root Account=lab"):
            run("sacctmgr", "-i", *line.split())

    # --- asking and telling -------------------------------------------------------------------------------------------

    def node_states(self) -> list[str]:
        """One word a node, in their order."""
        return run("sinfo", "-h", "-N", "-p", "gpu", "-o", "%t", check=False).split()

    def jobs(self, states: str = "all") -> list[dict[str, str]]:
        """The jobs that Slurm knows: id, state, comment, nodes, restarts."""
        fields = ("JobID", "State", "Comment", "NodeList", "RestartCnt", "Reason")
        layout = ",".join(f"{field}:|" for field in fields)
        lines = run("squeue", "-h", "-t", states, "-O", layout, check=False).splitlines()
        return [dict(zip(fields, (part.strip() for part in line.split("|")), strict=False)) for line in lines if line]

    def running(self, comment: str = "") -> list[dict[str, str]]:
        """The running jobs whose comment has this in it."""
        return [job for job in self.jobs("running") if comment in job["Comment"]]

    def run(self, *command: str) -> str:
        """Run a command that has to succeed."""
        return run(*command)

    def run_any(self, *command: str) -> str:
        """Run a command that may come too late."""
        return run(*command, check=False)

    def trainings(self, job: dict[str, str]) -> list[int]:
        """The processes of a job that train."""
        found = []
        for pid in (int(pid) for pid in run("pgrep", "--full", "distillery train", check=False).split()):
            with suppress(OSError):
                if f"SLURM_JOB_ID={job['JobID']}\0" in Path(f"/proc/{pid}/environ").read_text(errors="replace"):
                    found.append(pid)
        return found

    def hurry(self) -> None:
        """Let requeued jobs begin now: Slurm makes them wait two minutes."""
        if self.maintenance:
            return
        self.keep_controller()
        for job in self.jobs("pending"):
            run("scontrol", "update", f"JobId={job['JobID']}", "StartTime=now", check=False)

    def remember_jobs(self, seconds: int) -> None:
        """Let Slurm forget a job so long after its end."""
        path = CONFIGURATION / "slurm.conf"
        path.write_text(re.sub("MinJobAge=.*", f"MinJobAge={seconds}", path.read_text()))
        run("scontrol", "reconfigure")

    def keep_controller(self) -> None:
        """Start a controller that crashed again with what it knew, as every site's service manager does."""
        if not alive(self.folder / "slurmctld.pid"):
            print("slurmctld has crashed and is started again")
            run("slurmctld", "-i")

    def stop_controller(self) -> None:
        """Begin maintenance: jobs go on, but Slurm neither answers for them nor takes new ones."""
        self.maintenance = True
        end_process(self.folder / "slurmctld.pid")

    def start_controller(self) -> None:
        """End maintenance."""
        run("slurmctld", "-i")
        self.maintenance = False

    def end_jobs(self) -> None:
        """Cancel what there is, and wait until the nodes are empty."""
        run("scancel", "--user=root", check=False)
        self.wait_until(lambda: not self.jobs("pending,running,completing"), "no jobs", seconds=60)

    def heal(self) -> None:
        """Bring back nodes, and a controller, that a test has taken away."""
        self.maintenance = False
        self.keep_controller()
        self.end_jobs()
        for node in NODES:
            if not alive(self.folder / f"slurmd-{node}.pid"):
                self.start_node(node)
            run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        self.wait_until(lambda: self.node_states() == ["idle", "idle"], "both nodes idle", seconds=60)

    def wait_until(self, condition, what: str, seconds: float) -> None:
        """Wait for something; tell the controller's last words if it does not come."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                log = self.folder / "slurmctld.log"
                tail = "\n".join(log.read_text().splitlines()[-15:]) if log.exists() else ""
                raise AssertionError(f"not within {seconds:.0f} s: {what}\n{run('squeue', check=False)}\n{tail}")
            time.sleep(0.2)


def run(*command: str, check: bool = True) -> str:
    """Run a command and return its standard output."""
    result = subprocess.run(command, capture_output=True, text=True)
    if check and result.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {result.returncode}: {result.stdout}{result.stderr}")
    return result.stdout


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


def open_files(pid: int) -> list[str]:
    """The files that a process has open."""
    with suppress(OSError):
        return [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
    return []


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in run("pgrep", "--parent", str(pid), check=False).split()]
    return children + [later for child in children for later in descendants(child)]


def alive(pid_file: Path) -> bool:
    try:
        state = Path(f"/proc/{pid_file.read_text().strip()}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def end_process(pid_file: Path) -> None:
    """Stop a daemon: politely, then for good."""
    for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        if not alive(pid_file):
            return
        with suppress(OSError, ValueError):
            os.kill(int(pid_file.read_text()), number)
        deadline = time.monotonic() + patience
        while alive(pid_file) and time.monotonic() < deadline:
            time.sleep(0.05)
