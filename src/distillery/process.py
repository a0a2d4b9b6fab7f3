"""What a command asks of its own process: threads, memory, and how it ends."""

import atexit
import ctypes
import gc
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def limit_threads(threads: int | None) -> None:
    """Have torch use so many threads; by default its own choice."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def keep_memory() -> None:
    """Have glibc keep what is freed for what is asked for next: on CPUs, a third of the time went to the kernel.

    It would return each large tensor at once, and have the kernel clear the pages of the next one. Not where networks
    are timed, for those who deploy them have glibc as it is.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((-3, 2**30), (-1, 2**31 - 1)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(option, value)


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Look for no cycles of garbage in here: whoever reads thousands of files would go through all that it holds again
    and again, a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def end_process(code: int) -> None:
    """End as an interpreter does, but without taking torch's modules apart one by one, which takes a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # as where a shell has closed it
                stream.flush()
        except (OSError, ValueError):  # a full disk, a closed pipe
            code = code or 1
    os._exit(code)
