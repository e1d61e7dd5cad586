"""JSON that is nested as no answer is."""

from __future__ import annotations

import pytest

from agemem_mcp.errors import ProviderError
from agemem_policies.openai_chat.reading import json_object, json_text


def test_json_that_is_nested_too_deeply_is_a_providers_error() -> None:
    with pytest.raises(ProviderError, match="malformed JSON as its answer"):
        json_object('{"a": ' * 100_000, "its answer")
    nested: dict[str, object] = {}
    for _ in range(100_000):
        nested = {"a": nested}
    with pytest.raises(ProviderError, match="nested too deeply"):
        json_text(nested)
