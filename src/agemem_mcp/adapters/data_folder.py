"""The data folder: private to its owner, and open in one writing process at a time."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

import filelock

from agemem_mcp.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE = 0o700
_LOCK_PID = "lock.pid"
MIN_FREE_BYTES = 32 * 1024 * 1024
"""Below this nothing is opened: the embedded index maps its files, and the system kills who writes into a mapped
file when the disk is full. A new index takes 12 MB."""


class FolderLock:
    """An exclusive lock on a folder, held until :meth:`release` or the end of the process."""

    def __init__(self, directory: Path, *, contents: str, patience_s: float = 0) -> None:
        """Lock the folder.

        Args:
            directory: an existing folder that can be written.
            contents: what it holds, for the message.
            patience_s: how long to wait for whoever holds it.

        Raises:
            StoreError: another process holds it; the text says which and what to do.
            ConfigurationError: the lock file cannot be opened.
        """
        # Not thread-local: it may be taken by one thread and given back by another.
        self._lock = filelock.FileLock(directory / "lock", thread_local=False)
        # Beside the lock, as Windows lets nobody read a locked file.
        self._pid_file = directory / _LOCK_PID
        try:
            self._lock.acquire(timeout=patience_s, poll_interval=0.02)
            self._pid_file.write_text(f"{os.getpid()}\n", encoding="ascii")
        except filelock.Timeout as error:
            holder = "unknown"
            with suppress(OSError):
                holder = self._pid_file.read_text(encoding="ascii").strip() or holder
            msg = (
                f"The {contents} in {directory} is open in another process (process id {holder}). One process at a "
                f"time can use it: end that one, connect to it over HTTP, or choose another --data-dir."
            )
            raise StoreError(msg) from error
        except OSError as error:
            self._lock.release()
            msg = (
                f"{directory / 'lock'} cannot be locked: {error.strerror or error}. Check who owns it (was a server "
                f"once run as another user?), or choose another --data-dir."
            )
            raise ConfigurationError(msg) from error

    def release(self) -> None:
        """Give the lock back."""
        self._pid_file.unlink(missing_ok=True)
        self._lock.release()


class DataFolder:
    """Where everything is kept: ``ledger.db``, ``sessions.db`` and ``index/``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = directory / "ledger.db"
        self.sessions = directory / "sessions.db"
        self.index = directory / "index"

    @property
    def has_memory(self) -> bool:
        """Whether anything was ever stored here."""
        return all(path.exists() and path.stat().st_size > 0 for path in (self.ledger, self.sessions))

    def prepare(self) -> None:
        """Make the folder and the places of what will be stored, for their owner alone.

        Raises:
            ConfigurationError: it cannot be made or written, or its disk is full.
        """
        self.check()
        self.index.mkdir(mode=PRIVATE, exist_ok=True)
        for database in (self.ledger, self.sessions):
            # Made here because the folder may have been there before, open to others; SQLite gives its side files
            # the same permissions.
            database.touch(mode=0o600)

    def check(self) -> None:
        """Make sure that the folder can be used, making it if need be.

        Raises:
            ConfigurationError: it cannot be made or written, or its disk is full.
        """
        try:
            missing = not self.directory.exists()
            self.directory.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            if missing:
                # mkdir's mode is cut by the umask, and never applied to a folder that was there.
                self.directory.chmod(PRIVATE)
            probe = self.directory / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
            free = shutil.disk_usage(self.directory).free
        except OSError as error:
            msg = (
                f"The data folder {self.directory} cannot be used: {error.strerror or error}. Check its permissions "
                f"and the free space, or choose another with --data-dir or AGEMEM_DATA_DIR."
            )
            raise ConfigurationError(msg) from error
        if free < MIN_FREE_BYTES:
            msg = (
                f"The disk that holds the data folder {self.directory} is full: {free // 2**20} MB are free, and at "
                f"least {MIN_FREE_BYTES // 2**20} are needed. Nothing was changed. Free some space, or choose "
                f"another folder with --data-dir or AGEMEM_DATA_DIR."
            )
            raise ConfigurationError(msg)

    def lock_pid(self) -> str | None:
        """The process id of whoever has the lock, or had it when it was killed."""
        try:
            return (self.directory / _LOCK_PID).read_text(encoding="ascii").strip()
        except OSError:
            return None

    def holder(self) -> str | None:
        """The process id of whoever writes here now, as far as one can tell."""
        try:
            FolderLock(self.directory, contents="memory").release()
        except StoreError:
            return self.lock_pid() or "unknown"
        return None

    def lock(self, *, patience_s: float = 0) -> FolderLock:
        """Become the one process that writes here.

        Args:
            patience_s: how long to wait for another one that is about to end.

        Raises:
            StoreError: another process is.
        """
        return FolderLock(self.directory, contents="memory", patience_s=patience_s)
