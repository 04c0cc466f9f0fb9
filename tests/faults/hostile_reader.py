"""Reads every picture of a folder, as a worker does, and says for each what came of it; run as a process of its own.

A picture that ends the process is the last one named; one that is waited for is, too.
"""

from __future__ import annotations

import os
import resource
import sys
import warnings
from pathlib import Path

from models.datasets import folder, read_item
from models.encoders.images import ImagePreprocessing
from models.errors import ItemError

MEMORY_BYTES = 6 * 2**30  # of addresses; torch alone takes a part of them


def main() -> None:
    """One line a file: name, then what came of it."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    prepare = ImagePreprocessing(size=32)
    for name in sorted(os.listdir(sys.argv[1])):
        sys.stdout.write(f"{name} ")
        sys.stdout.flush()
        try:
            picture = read_item(folder.uri_of(Path(sys.argv[1]) / name))
            sound = picture.mode in ("L", "RGB") and picture.width * picture.height <= folder.MAX_PIXELS
            outcome = "picture" if sound and prepare(picture).shape == (1, 32, 32) else "strange"
        except ItemError as error:
            outcome = error.reason if len(str(error)) < 2000 else "endless-message"
        except Exception as error:  # noqa: BLE001 — that is what is looked for
            outcome = f"CRASH:{type(error).__name__}"
        sys.stdout.write(f"{outcome}\n")
    sys.stdout.write("finished.\n")


if __name__ == "__main__":
    main()
