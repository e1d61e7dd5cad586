"""Whose memory a request works in."""

from __future__ import annotations

import hashlib
import re

from agemem_mcp.domain.memory import Scope, check_namespace
from agemem_mcp.errors import InvalidOperation
from agemem_policies.endpoint.failures import bad_request

_PLAIN = re.compile(r"[A-Za-z0-9._@:+-]+")
_LONGEST = 128
_HASHED = "sha256:"
_HASH_CHARACTERS = 32
_LONGEST_BEFORE_HASH = _LONGEST - len("@") - len(_HASHED) - _HASH_CHARACTERS


def scope_of(namespace: str, user: str | None) -> Scope:
    """The scope of a client's user.

    Args:
        namespace: the server's, or the one that the request names.
        user: the client's name of who uses it; None for the namespace itself.

    Raises:
        Failure: the namespace is none.
    """
    try:
        check_namespace(namespace)
    except InvalidOperation as error:
        raise bad_request(str(error), "X-Agemem-Namespace") from error
    return Scope(namespace=namespace if user is None else of_user(namespace, user))


def of_user(namespace: str, user: str) -> str:
    """The namespace of a user within one; two different pairs never share one.

    A name that does not fit, or could be read in two ways, is hashed.
    """
    plain = f"{namespace}@{user}"
    readable = "@" not in namespace and _HASHED not in user and _PLAIN.fullmatch(user) is not None
    if readable and len(plain) <= _LONGEST:
        return plain
    digest = hashlib.sha256(f"{namespace}\x1f{user}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"{namespace[:_LONGEST_BEFORE_HASH]}@{_HASHED}{digest[:_HASH_CHARACTERS]}"
