"""The data folder: private, and written by one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agemem_mcp.adapters.data_folder import DataFolder
from agemem_mcp.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Generator

HOLD = """
import sys
from pathlib import Path
from agemem_mcp.adapters.data_folder import DataFolder
lock = DataFolder(Path(sys.argv[1])).lock()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process_holds(directory: Path) -> Generator[subprocess.Popen[str]]:
    """A process of its own with the folder's lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    """A prepared folder."""
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    return folder


def mode(path: Path) -> int:
    """A folder's permission bits."""
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_a_new_folder_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        DataFolder(tmp_path / "data").prepare()
    finally:
        os.umask(before)
    assert mode(tmp_path / "data") == 0o700


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_a_folder_that_was_there_keeps_its_permissions(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    DataFolder(tmp_path).prepare()
    assert mode(tmp_path) == 0o750


def test_preparing_makes_the_places_of_what_will_be_stored_and_nothing_else(folder: DataFolder) -> None:
    folder.prepare()
    assert set(folder.directory.iterdir()) == {folder.index, folder.ledger, folder.sessions}
    assert not folder.has_memory


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_what_is_stored_is_private_also_in_a_folder_that_is_not(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder = DataFolder(tmp_path)
    folder.prepare()
    assert (mode(folder.index), mode(folder.ledger), mode(folder.sessions)) == (0o700, 0o600, 0o600)


def test_a_lock_file_that_cannot_be_opened_is_told(folder: DataFolder) -> None:
    folder.prepare()
    (folder.directory / "lock").mkdir()
    with pytest.raises(ConfigurationError, match=r"cannot be locked.*--data-dir"):
        folder.lock()


def test_a_file_in_the_folders_place_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match=r"cannot be used: .*AGEMEM_DATA_DIR"):
        DataFolder(path).prepare()
    assert path.read_text() == "mine"


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        DataFolder(tmp_path / "file" / "data").prepare()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match="Permission denied"):
        DataFolder(tmp_path).prepare()
    tmp_path.chmod(0o700)


def test_a_folder_on_a_file_system_nobody_can_write_is_refused() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc here")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        DataFolder(Path("/proc/agemem")).prepare()


def test_a_second_process_is_refused_with_the_first_ones_id(folder: DataFolder) -> None:
    with another_process_holds(folder.directory) as process:
        with pytest.raises(StoreError, match=rf"process id {process.pid}\).*--data-dir"):
            folder.lock()
        assert folder.holder() == str(process.pid)


def test_the_lock_of_a_killed_process_is_free(folder: DataFolder) -> None:
    with another_process_holds(folder.directory) as process:
        process.kill()
        process.wait()
        lock = folder.lock()
        assert (folder.directory / "lock.pid").read_text().strip() == str(os.getpid())
        lock.release()


def test_a_released_lock_can_be_taken_by_another_process(folder: DataFolder) -> None:
    folder.lock().release()
    assert not (folder.directory / "lock.pid").exists()
    with another_process_holds(folder.directory):
        pass
    assert folder.holder() is None
