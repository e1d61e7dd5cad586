"""Files are whole, or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from agemem_training.reporting.writing import write_atomically


def test_a_file_is_put_in_place_with_its_folder_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.md"
    write_atomically(path, "old")
    write_atomically(path, "näu")
    assert path.read_text(encoding="utf-8") == "näu"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_on_a_full_disk_the_old_file_survives(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    write_atomically(path, "old")
    (tmp_path / ".report.md.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
