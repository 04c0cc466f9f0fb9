"""Embeddings that exist already, in a .npy file: (items, dim) float32, memory-mapped. Objects are never unpickled."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.errors import UsageError
from models.plain_file import open_plain, size_of

MAX_BYTES = 2**42
_MAGIC = b"\x93NUMPY"


def map_embeddings(path: Path) -> npt.NDArray[np.float32]:
    """The file's array, read-only: (n, dim) float32.

    Raises:
        UsageError: no such file, a pipe or device, no .npy file, another type than float32, cut off.
    """
    try:
        with open_plain(path, MAX_BYTES) as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ValueError("it does not begin as a .npy file does")
            file.seek(0)
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version} of the format is not known")
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, by_column, dtype = read(file)
            if dtype != np.float32 or dtype.hasobject:
                raise UsageError(f"{path} holds {dtype}; embeddings must be float32.")
            return _mapped(file.fileno(), file.tell(), size_of(file), shape, by_column)
    except UsageError:
        raise
    except (OSError, ValueError, OverflowError, RecursionError, MemoryError, SyntaxError) as error:
        said = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(
            f"{path} cannot be read as a .npy file: {said[:300]}. Write it again with numpy.save."
        ) from error


def _mapped(
    descriptor: int, offset: int, size_bytes: int, shape: tuple[int, ...], by_column: bool
) -> npt.NDArray[np.float32]:
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"its shape is {shape}, not (items, dim)")
    expected = offset + 4 * shape[0] * shape[1]
    if expected > size_bytes:
        raise ValueError(f"it is cut off: {size_bytes} bytes of {expected}")
    # The mapping outlives our descriptor; its own one leads to the same open file, whatever the name means by then.
    with os.fdopen(os.dup(descriptor), "rb") as again:
        return np.memmap(again, np.float32, "r", offset, shape, "F" if by_column else "C")
