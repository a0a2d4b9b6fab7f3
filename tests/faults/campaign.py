"""Run commands while their disk fails, and say as JSON what each did and left behind; see test_campaign.py.

In a process of its own, for `failing_io.c` is loaded by LD_PRELOAD. A scenario is [command, words of the path, errno,
on reading, calls that still succeed]; each works in a copy of the workplace that is given.
"""

import contextlib
import ctypes
import io
import json
import shutil
import sys
from pathlib import Path

from distillery.cli import main

SHIM = ctypes.CDLL(None)


def run(words, folder):
    """Run a command in a workplace; its exit code and standard error."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main([word.replace("HERE", str(folder)) for word in words])
        except SystemExit as ended:
            return ended.code, said.getvalue()
        except BaseException as error:  # what a user would see as a traceback
            return -1, f"Traceback: {type(error).__name__}: {error}"
    return None, said.getvalue()


def content(folder):
    """What a results folder holds, but for what is never the same twice."""
    return {
        str(path.relative_to(folder)): hash(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tensorboard" not in path.parts and path.name not in ("run.json", "profile.json")
    }


def scenario(source, folder, words, pattern, number, reading, after):
    """Fail once, then try again."""
    shutil.copytree(source, folder, symlinks=True)
    before = content(folder / "results")
    SHIM.arm(pattern.encode(), number, reading, after)
    code, said = run(words, folder)
    SHIM.disarm()
    left = content(folder / "results")
    litter = [name for name in left if "/." in f"/{name}"]
    code_again, said_again = run(words, folder)
    after_all = content(folder / "results")
    shutil.rmtree(folder)
    return {
        "code": code,
        "said": said,
        "changed": [name for name in before if left.get(name) != before[name]],
        "litter": litter,
        "code_again": code_again,
        "said_again": said_again,
        "content": after_all,
    }


if __name__ == "__main__":
    source, place = Path(sys.argv[1]), Path(sys.argv[2])
    scenarios = json.loads(sys.stdin.read())
    for name in ("big", "small"):
        for verb, *more in (("train", "--workers", "0"), ("evaluate", "--workers", "0"), ("profile",)):
            words = [verb, "HERE/config/tiny.yaml", name, "--results", "HERE/results", "--threads", "1", *more]
            assert run(words, source)[0] == 0, words
    straight = {}
    for words in {tuple(words) for words, *_ in scenarios.values()}:
        shutil.copytree(source, place, symlinks=True)
        assert run(words, place)[0] == 0, words
        straight["\n".join(words)] = content(place / "results")
        shutil.rmtree(place)
    done = {name: scenario(source, place, *facts) for name, facts in scenarios.items()}
    for name, (words, *_) in scenarios.items():
        done[name]["as_if_nothing_had_been"] = done[name].pop("content") == straight["\n".join(words)]
    print(json.dumps(done))
