"""``python -m agemem_mcp.daemon``: the process that owns a data folder and serves it on the folder's socket.

Started by the first client that needs it (`link/connecting.py`). It goes around the command line,
which takes a tenth of a second to import.
"""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Own the folder that the environment names until nobody is connected any more; gives the status."""
    # As in `_entry`: importing makes no garbage.
    gc.disable()
    from agemem_mcp.adapters.data_folder import DataFolder  # noqa: PLC0415  after the collector was stopped
    from agemem_mcp.app import service_gate  # noqa: PLC0415  as above
    from agemem_mcp.errors import AgeMemError  # noqa: PLC0415  as above
    from agemem_mcp.owner.owner import Owner  # noqa: PLC0415  as above
    from agemem_mcp.process import run_async, start_logging  # noqa: PLC0415  as above
    from agemem_mcp.settings import load_settings  # noqa: PLC0415  as above

    try:
        settings = load_settings()
        start_logging(settings.log_level)
        folder = DataFolder(settings.data_dir)
        folder.check()
        lock = folder.lock(patience_s=_PATIENCE_S)
        try:
            gate = service_gate(settings, locked=True)
            run_async(Owner(settings, gate, kind="daemon", idle_s=settings.daemon_idle_minutes * 60).run())
        finally:
            lock.release()
    except AgeMemError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 0


_PATIENCE_S = 15.0
"""An owner that is about to end writes its last changes; nobody finds it any more, but it still has the folder."""

if __name__ == "__main__":
    sys.exit(main())
