"""Puts texts into a store of mcp-server-qdrant as the server itself would: run by that server's own Python.

python fill_qdrant.py FOLDER MODEL < texts.json
"""

import json
import sys
import uuid

from fastembed import TextEmbedding  # the peer's environment, not ours
from qdrant_client import QdrantClient, models

_BATCH = 256


def main() -> None:
    """Read a JSON list of texts from stdin and store them."""
    folder, model_name = sys.argv[1:]
    texts = json.load(sys.stdin)
    model = TextEmbedding(model_name)
    client = QdrantClient(path=folder)
    vector = f"fast-{model_name.rsplit('/', 1)[-1].lower()}"
    try:
        if not client.collection_exists("facts"):
            size = len(next(iter(model.embed(["size"]))))
            parameters = models.VectorParams(size=size, distance=models.Distance.COSINE)
            client.create_collection("facts", vectors_config={vector: parameters})
        for start in range(0, len(texts), _BATCH):
            batch = texts[start : start + _BATCH]
            points = [
                models.PointStruct(
                    id=uuid.uuid4().hex,
                    vector={vector: embedding.tolist()},
                    payload={"document": text, "metadata": None},
                )
                for text, embedding in zip(batch, model.embed(batch), strict=True)
            ]
            client.upsert("facts", points)
    finally:
        client.close()


if __name__ == "__main__":
    main()
