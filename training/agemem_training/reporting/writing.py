"""Files that are either the old one or the new one, whole, whatever happens while they are written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_atomically(path: Path, data: str | bytes) -> None:
    """Put a file in place in one step; its folder is made if it is missing.

    Raises:
        OSError: it cannot be written, as on a full disk; what stood there before still does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: what a killed process leaves of it is overwritten, and does not pile up.
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
