"""Reading sealed shards: some rows, some columns, nothing more; checked first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoogen.core.errors import IntegrityError
from zoogen.store.compact import PLACES, VALUES, put_back
from zoogen.store.shard_info import OPTIMIZER_FILE, WEIGHTS_FILE, read_shard_info
from zoogen.store.stack_file import StackFile

Rows = Sequence[int] | np.ndarray | slice | None


class ShardReader:
    """An open shard. Its files are opened when first read, and again when read after ``close`` or the ``with`` block.

    Args:
        folder: The shard's folder.

    Raises:
        IntegrityError: its ``shard.json`` is damaged, missing or of an unknown format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = read_shard_info(folder)
        self._files: dict[str, StackFile] = {}

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def weights(self, rows: Rows = None, columns: slice | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """float32 [rows, columns]: flat float32 tensors, in the order of the layout; in ``out``, if it is given."""
        file = self._file(WEIGHTS_FILE)
        if VALUES not in self.info.datasets[WEIGHTS_FILE]:
            return file.read("weights", rows, columns, out)
        found = put_back(file.read(VALUES, rows), file.read(PLACES, rows))
        found = found if columns is None else found[:, columns]
        if out is None:
            return np.ascontiguousarray(found)
        out[...] = found
        return out

    def side(self, dtype: str, rows: Rows = None) -> np.ndarray:
        """[rows, K]: flat tensors of another dtype (bfloat16 and float8 as unsigned integers of the same bits)."""
        found = self._file(WEIGHTS_FILE).read(f"side/{dtype}", rows)
        return found.view(np.bool_) if dtype == "bool" else found

    def model_ids(self, rows: Rows = None) -> list[str]:
        """One per row."""
        return [m.decode() for m in self._file(WEIGHTS_FILE).read("model_id", rows).tolist()]

    def models(self) -> tuple[list[str], np.ndarray]:
        """The ids of its models, sorted, and int32 [states]: which of these each row is of."""
        found, model_of = np.unique(self._file(WEIGHTS_FILE).read("model_id"), return_inverse=True)
        return [m.decode() for m in found.tolist()], model_of.astype(np.int32)

    def epochs(self, rows: Rows = None) -> np.ndarray:
        """int32 [rows]."""
        return self._file(WEIGHTS_FILE).read("epoch", rows)

    def predictions(self, rows: Rows = None) -> np.ndarray | None:
        """uint8 [rows, N_test]: the predicted class of each test sample, or None where they were not kept."""
        if "test_predictions" not in self.info.datasets[WEIGHTS_FILE]:
            return None
        return self._file(WEIGHTS_FILE).read("test_predictions", rows)

    def kept(self, prunable: int, rows: Rows = None) -> np.ndarray | None:
        """bool [rows, W], which prunable weights a twin has left; None in a shard of models that are no twins.

        Args:
            prunable: W, the number of prunable weights (``Layout.prunable_places``).

        Raises:
            IntegrityError: the masks are of another number of weights.
        """
        if "kept" not in self.info.datasets[WEIGHTS_FILE]:
            return None
        self._check_width("kept", -(-prunable // 8))
        packed = self._file(WEIGHTS_FILE).read("kept", rows)
        return np.unpackbits(packed, axis=1, count=prunable).view(np.bool_)

    def log_alpha(self, prunable: int, rows: Rows = None) -> np.ndarray | None:
        """float32 [rows, W], log alpha of variational dropout, or None where it was not kept; as ``kept``."""
        if "log_alpha" not in self.info.datasets[WEIGHTS_FILE]:
            return None
        self._check_width("log_alpha", prunable)
        return self._file(WEIGHTS_FILE).read("log_alpha", rows)

    def _check_width(self, name: str, width: int) -> None:
        _, shape = self.info.datasets[WEIGHTS_FILE][name]
        if shape[1:] != (width,):
            raise IntegrityError(f"{self.folder}: {name!r} has rows of shape {shape[1:]}, its layout says ({width},)")

    def optimizer(self, model_ids: Sequence[str], epoch: int) -> dict[str, np.ndarray] | None:
        """Optimizer states of these models after ``epoch``, in this order, or None where any of them was not kept."""
        if OPTIMIZER_FILE not in self.info.files:
            return None
        file = self._file(OPTIMIZER_FILE)
        keys = zip(file.read("model_id").tolist(), file.read("epoch").tolist(), strict=True)
        rows = {model: row for row, (model, at) in enumerate(keys) if at == epoch}
        wanted = [m.encode() for m in model_ids]
        if not set(wanted) <= set(rows):
            return None
        names = [n for n in self.info.datasets[OPTIMIZER_FILE] if n not in ("model_id", "epoch")]
        return {name: file.read(name, [rows[m] for m in wanted]) for name in names}

    def _file(self, name: str) -> StackFile:
        if name not in self._files:
            path = self.folder / name
            if path.is_file() and path.stat().st_size != self.info.files[name].size:
                raise IntegrityError(
                    f"{path}: {path.stat().st_size} bytes, sealed were {self.info.files[name].size}; "
                    f"`zoogen verify` lists all damage"
                )
            self._files[name] = StackFile(path, self.info.datasets[name])
        return self._files[name]
