"""Snakemake, each time in a process forked from one that has imported it: most of a dry run's time.

Run as a script, this is that process: a line of JSON asks for a run, a line answers with its exit code.
"""

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path


@cache
def _server() -> "subprocess.Popen[str]":
    """A process that ends with this one, for then its standard input ends; it knows no settings of the user's."""
    environment = {"PATH": os.defpath, "HOME": os.devnull, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def snakemake(folder: Path, environment: dict[str, str], *command: str) -> "subprocess.CompletedProcess[str]":
    """Run ``command``, which is Snakemake's, in a folder with that environment."""
    server = _server()
    with tempfile.NamedTemporaryFile("r") as output:
        server.stdin.write(json.dumps([str(folder), environment, command, output.name]) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, code, output.read())


def serve() -> None:
    """Fork for each line; the children leave the loop, with everything as in a process of their own."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            folder, environment, sys.argv, output = json.loads(line)
            sys.stdin = None
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(output, os.O_WRONLY), 1)
            os.dup2(1, 2)
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(folder)
            sys.path[:1] = [str(Path(sys.executable).parent), *environment["PYTHONPATH"].split(os.pathsep)]
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


if __name__ == "__main__":
    import snakemake_executor_plugin_slurm  # noqa: F401
    from snakemake.cli import main

    import distillery.experiment.plan  # noqa: F401

    # What the package needs is here now, and the package of the environment too: each checkout has its own.
    for name in [name for name in sys.modules if name.partition(".")[0] == "distillery"]:
        del sys.modules[name]
    serve()
    sys.exit(main())
