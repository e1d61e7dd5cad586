"""``python -m agemem_mcp`` is the ``agemem-mcp`` command."""

from agemem_mcp._entry import main

if __name__ == "__main__":  # other processes of a training run import this module again
    main()
