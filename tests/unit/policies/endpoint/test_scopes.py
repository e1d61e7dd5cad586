"""Whose memory a request works in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_mcp.domain.memory import Scope, check_namespace
from agemem_policies.endpoint.failures import Failure
from agemem_policies.endpoint.scopes import of_user, scope_of

namespaces = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@:+-]{0,127}", fullmatch=True)
users = st.text(min_size=1, max_size=200) | st.from_regex(r"[a-c@:]{1,6}", fullmatch=True)


def test_without_a_user_it_is_the_namespace_itself() -> None:
    assert scope_of("team", None) == Scope(namespace="team")


def test_a_name_that_fits_can_be_read() -> None:
    assert scope_of("team", "ana@example.com") == Scope(namespace="team@ana@example.com")


@given(namespaces, users)
def test_a_users_namespace_is_always_one(namespace: str, user: str) -> None:
    assert check_namespace(of_user(namespace, user)) != namespace


@given(namespaces, users, namespaces, users)
def test_two_users_never_share_a_namespace(one: str, user: str, other: str, another: str) -> None:
    assert (of_user(one, user) == of_user(other, another)) == ((one, user) == (other, another))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a@b", "c"), ("a", "b@c")),
        (("a", "Ana"), ("a", "ana")),
        (("a", "x" * 200), ("a", "x" * 201)),
        (("n" * 127 + "a", "u"), ("n" * 127 + "b", "u")),
        (("a", "ü"), ("a", of_user("a", "ü").removeprefix("a@"))),
        (("a", "\ud800"), ("a", "?")),
    ],
)
def test_names_that_could_be_mistaken_are_told_apart(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert of_user(*one) != of_user(*other)


def test_a_header_that_is_no_namespace_is_refused() -> None:
    with pytest.raises(Failure, match="is no namespace") as refused:
        scope_of("../x", None)
    assert refused.value.status == 400
