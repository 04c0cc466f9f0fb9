"""Tokens with names, and how much one client may ask."""

from __future__ import annotations

import pytest

from orchestrator.api.limits import AtOnce, Rate
from orchestrator.api.tokens import named, token_of, tokens_of
from orchestrator.errors import UsageError
from orchestrator.settings import Settings

FIRST, SECOND = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def written(tmp_path):
    """Settings that name a file of this content."""

    def write(content):
        file = tmp_path / "tokens"
        file.write_text(content)
        file.chmod(0o600)
        return Settings(api_token_file=file)

    return write


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        (f"{FIRST}\n", {"token": FIRST}),
        (f"\n# new\nweb-2 {FIRST}\n\nweb-1  {SECOND}\n", {"web-2": FIRST, "web-1": SECOND}),
        (f"{FIRST}\nold {SECOND}", {"token-1": FIRST, "old": SECOND}),
    ],
)
def test_a_file_has_a_token_a_line_with_or_without_a_name(written, content, tokens):
    found = tokens_of(written(content))
    assert found == tokens
    assert token_of(written(content)) == FIRST
    for name, token in tokens.items():
        assert named(found, f"Bearer {token}") == name


@pytest.mark.parametrize(
    "content",
    ["", "# nothing\n", "short", f"a b {FIRST}", f"a {FIRST}\na {SECOND}", f"a {FIRST}\nb {FIRST}", f"ä {FIRST}", "x" * 70_000],
)  # fmt: skip
def test_what_is_no_list_of_tokens_is_refused_and_no_token_is_repeated(written, content):
    with pytest.raises(UsageError) as refused:
        tokens_of(written(content))
    assert FIRST not in str(refused.value)


def test_only_a_whole_token_is_one():
    tokens = {"a": FIRST, "b": SECOND}
    for given in ("", FIRST, f"Bearer {FIRST[:-1]}", f"Bearer {FIRST}x", f"bearer {FIRST}", "Bearer "):
        assert named(tokens, given) is None


def test_a_client_may_ask_so_often_and_others_do_not_feel_it():
    now = [0.0]
    rate = Rate(2.0, 3, lambda: now[0])
    assert [rate.wait_s("a") for _ in range(4)] == [0, 0, 0, 1]
    assert rate.wait_s("b") == 0
    now[0] = 0.5
    assert [rate.wait_s("a") for _ in range(2)] == [0, 1]
    now[0] = 100.0
    assert [rate.wait_s("a") for _ in range(4)] == [0, 0, 0, 1]  # never more than the burst
    assert Rate(0.01, 1, lambda: 0.0).wait_s("c") == 0
    slow = Rate(0.01, 1, lambda: 0.0)
    assert [slow.wait_s("c") for _ in range(2)] == [0, 100]


def test_without_a_rate_nothing_is_limited_and_nobody_remembered():
    rate = Rate(0.0, 1, lambda: 0.0)
    assert not any(rate.wait_s("a") for _ in range(1000))


def test_clients_that_were_away_longest_are_forgotten(monkeypatch):
    monkeypatch.setattr("orchestrator.api.limits.MOST_CLIENTS", 2)
    rate = Rate(1.0, 1, lambda: 0.0)
    assert [rate.wait_s(client) for client in "abcb"] == [0, 0, 0, 1]
    assert len(rate._buckets) == 2
    assert rate.wait_s("a") == 0


def test_so_many_at_once_and_no_more():
    at_once = AtOnce(2)
    assert [at_once.enter() for _ in range(3)] == [True, True, False]
    at_once.leave()
    assert [at_once.enter() for _ in range(2)] == [True, False]
