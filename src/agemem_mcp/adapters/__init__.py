"""The ports of the domain on real libraries: one file per technology."""

import os

# ONNX Runtime's official builds report to their maker unless told not to before they are first imported (its
# Privacy.md, seen with 1.31), and write a device id into the user's cache folder. This project sends nothing to
# anyone. Here, because every library that loads it (fastembed, qdrant-client) is imported by an adapter.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
