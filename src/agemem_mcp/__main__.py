"""``python -m agemem_mcp`` is the ``agemem-mcp`` command."""

from agemem_mcp._entry import main

main()
