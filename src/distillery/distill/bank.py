"""A teacher's stored answers: how a row is written and read, and rows by the addresses of augmented images.

B batch, C classes, D features of the embedding, K logits that a row keeps.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distillery.distill.step import Outputs
from distillery.errors import UserError
from distillery.experiment.bank import check_rows
from distillery.experiment.schema.teacher import Answers, TopRows

Records = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
# The address of an augmented image: epoch or view, sample id, copy.
Address = tuple[int, int, int]


class RowFormat:
    """How one image's answer lies in a file: float32, float16, or the top K logits (float16) with the tail's log-sum.

    Args:
        answers: what the configuration says.
        classes: C; 0 of a teacher without classifier.
        features: D of the embedding; 0 where it is not stored.

    Raises:
        UserError: fewer logits are to be kept than a row could, or all.
    """

    def __init__(self, answers: Answers, classes: int, features: int = 0) -> None:
        self.classes, self.features = classes, features
        self.top = answers.rows.top if isinstance(answers.rows, TopRows) else 0
        check_rows(answers, classes)
        if self.top:
            fields: list[Any] = [("classes", "<u2", self.top), ("logits", "<f2", self.top), ("tail", "<f4")]
        else:
            kind = "<f4" if answers.rows == "float32" else "<f2"
            fields = [("logits", kind, (classes,))] + ([("embedding", kind, features)] if features else [])
        self.dtype = np.dtype(fields)

    def encode(self, outputs: Outputs) -> Records:
        """Write a batch's answers, (B,).

        Raises:
            UserError: an answer is NaN, infinite, or too large for float16.
        """
        logits_BC = outputs.logits_BC.float().cpu()
        records = np.empty(len(logits_BC), self.dtype)
        if self.top:
            logits_BK, classes_BK = logits_BC.topk(self.top)
            rest_BC = logits_BC.scatter(1, classes_BK, -torch.inf)
            records["classes"], records["tail"] = classes_BK.numpy(), rest_BC.logsumexp(1).numpy()
            logits_BC = logits_BK
        written = {"logits": logits_BC}
        if self.features:
            assert outputs.embedding_BD is not None
            written["embedding"] = outputs.embedding_BD.float().cpu()
        for name, values in written.items():
            with np.errstate(over="ignore"):
                records[name] = values.numpy()
            if not np.isfinite(records[name]).all():
                largest = float(values.abs().max())
                cure = "write float32" if np.isfinite(largest) else "such a teacher cannot teach"
                raise UserError(
                    f"teacher.rows: the teacher's {name} reach {largest:g}, which {self.dtype[name].base} "
                    f"cannot hold; {cure}"
                )
        return records

    def decode(self, records: Records) -> Outputs:
        """Read a batch's answers: logits (B, C) and, where it is stored, the embedding (B, D), float32.

        Of the top K rows, all other classes share the tail evenly.
        """
        logits = torch.from_numpy(records["logits"].astype(np.float32))
        if self.top:
            rest = torch.from_numpy(records["tail"] - np.log(np.float32(self.classes - self.top)))
            classes_BK = torch.from_numpy(records["classes"].astype(np.int64))
            logits = rest[:, None].repeat(1, self.classes).scatter(1, classes_BK, logits)
        if not self.features:
            return Outputs(logits)
        return Outputs(logits, embedding_BD=torch.from_numpy(records["embedding"].astype(np.float32)))

    def error(self, records: Records, live: Outputs) -> float:
        """How far stored answers lie from live ones: the norm of the difference over that of the live ones.

        Of the top K rows, the logits that they keep are compared.
        """
        stored, logits_BC = self.decode(records), live.logits_BC.float().cpu()
        pairs = [(stored.logits_BC, logits_BC)]
        if self.top:
            classes_BK = torch.from_numpy(records["classes"].astype(np.int64))
            pairs = [(stored.logits_BC.gather(1, classes_BK), logits_BC.gather(1, classes_BK))]
        if self.features:
            assert stored.embedding_BD is not None
            assert live.embedding_BD is not None
            pairs.append((stored.embedding_BD, live.embedding_BD.float().cpu()))
        return max(_relative(found, wanted) for found, wanted in pairs)


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))


class Bank:
    """Rows on disk by address; a file a part (an epoch or a view), mapped and never copied to memory as a whole.

    Args:
        folder: holds the parts.
        row_format: how a row is written.
        keys: of a part, a number for each of its samples, ascending: what ``key`` gives. Asked at every batch.
        key: of an address, its number.
    """

    def __init__(
        self, folder: Path, row_format: RowFormat, keys: Callable[[int], Ids], key: Callable[[int, int], int]
    ) -> None:
        self.folder, self.row_format = folder, row_format
        self._keys, self._key = keys, key
        self._parts: dict[int, Records] = {}

    def records(self, addresses: Sequence[Address]) -> Records:
        """The rows of some augmented images, as they are stored, (B,).

        Raises:
            UserError: the bank holds no row for one of them, or cannot be read.
        """
        found = np.empty(len(addresses), self.row_format.dtype)
        parts = np.array([part for part, _, _ in addresses])
        wanted = np.array([self._key(index, copy) for _, index, copy in addresses])
        for part in np.unique(parts):
            rows, keys = self._open(int(part))
            chosen = parts == part
            places = np.minimum(np.searchsorted(keys, wanted[chosen]), len(keys) - 1)
            if (keys[places] != wanted[chosen]).any():
                raise UserError(
                    f"{part_path(self.folder, int(part))}: holds no answer to an image that the run trains on"
                )
            found[chosen] = rows[places]
        return found

    def answers(self, batches: Iterable[Sequence[Address]], pin_memory: bool = False) -> Iterator[Outputs]:
        """The answers to batches of augmented images, each read while the one before it is used."""

        def read(addresses: Sequence[Address]) -> Outputs:
            outputs = self.row_format.decode(self.records(addresses))
            return pinned(outputs) if pin_memory else outputs

        with ThreadPoolExecutor(1, "bank") as reader:
            ahead: deque[Any] = deque()
            for addresses in batches:
                ahead.append(reader.submit(read, addresses))
                if len(ahead) > 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _open(self, part: int) -> tuple[Records, Ids]:
        if part not in self._parts:
            self._parts[part] = open_part(part_path(self.folder, part), self.row_format.dtype)
        return self._parts[part], self._keys(part)


def pinned(outputs: Outputs) -> Outputs:
    """Answers in memory that a GPU copies from while the CPU goes on."""
    embedding_BD = None if outputs.embedding_BD is None else outputs.embedding_BD.pin_memory()
    return Outputs(outputs.logits_BC.pin_memory(), embedding_BD=embedding_BD)


def moved(outputs: Outputs, device: torch.device) -> Outputs:
    """Answers on a device."""
    embedding_BD = None if outputs.embedding_BD is None else outputs.embedding_BD.to(device, non_blocking=True)
    return Outputs(outputs.logits_BC.to(device, non_blocking=True), embedding_BD=embedding_BD)


def part_path(folder: Path, part: int) -> Path:
    """The file of a part."""
    return folder / f"{part:05d}.npy"


def open_part(path: Path, dtype: "np.dtype[Any]") -> Records:
    """Map a part's rows.

    Raises:
        UserError: it is missing, cut off, or of other rows.
    """
    try:
        rows: Records = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged"
        raise UserError(
            f"{path}: cannot be read: {reason}; remove {path.parent}, and the teacher answers again"
        ) from None
    if rows.dtype != dtype or rows.ndim != 1:
        raise UserError(f"{path}: holds other rows than its bank.json says; remove {path.parent}")
    return rows
