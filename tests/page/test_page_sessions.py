from __future__ import annotations

import pytest

from gateway.keys import new_admin_key
from gateway.page.sessions import IDLE_S, LIFETIME_S, Sessions
from gateway.page.throttle import LoginThrottle

KEY = new_admin_key()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(KEY, now=clock)


def test_any_gateway_of_the_stack_takes_a_session(sessions: Sessions, clock: Clock) -> None:
    """A session opened at one gateway is good at another with the same admin key, and at none with another key."""
    cookie = sessions.cookie(sessions.open())
    assert Sessions(KEY, now=clock).read(cookie) == sessions.read(cookie) is not None
    assert Sessions(new_admin_key(), now=clock).read(cookie) is None


def test_ids_are_random_and_long(sessions: Sessions) -> None:
    """256 bits, and never the same."""
    ids = {sessions.open().id for _ in range(50)}
    assert len(ids) == 50
    assert all(len(session_id) == 43 for session_id in ids)


def test_nothing_of_a_cookie_can_be_changed(sessions: Sessions) -> None:
    """Every character is signed; what is not ours at all is refused without harm."""
    cookie = sessions.cookie(sessions.open())
    for at in range(len(cookie)):
        forged = cookie[:at] + ("A" if cookie[at] != "A" else "B") + cookie[at + 1 :]
        session = sessions.read(forged)
        # The last digit of base64 has two bits that say nothing; they may not matter, but give nothing either.
        assert session is None or (at == len(cookie) - 1 and session == sessions.read(cookie))
    for text in ("", ".", "...", "a.b.c.d", "ü" * 10, "x" * 10_000, cookie + ".", "." + cookie):
        assert sessions.read(text) is None


def test_an_idle_session_ends(sessions: Sessions, clock: Clock) -> None:
    """Half an hour without a request ends it; a request in between renews it."""
    session = sessions.open()
    clock.now += IDLE_S - 1
    renewed = sessions.renewed(session)
    assert renewed is not None
    clock.now += IDLE_S - 1
    assert sessions.read(sessions.cookie(session)) is None
    assert sessions.read(sessions.cookie(renewed)) is not None


def test_no_session_outlives_its_lifetime(sessions: Sessions, clock: Clock) -> None:
    """However often it is renewed, it ends after eight hours, streams too."""
    session = sessions.open()
    while clock.now < session.opened_s + LIFETIME_S - IDLE_S:
        clock.now += IDLE_S / 2
        session = sessions.renewed(session) or session
        assert sessions.read(sessions.cookie(session)) is not None
    assert not sessions.is_closed(session)
    clock.now = session.opened_s + LIFETIME_S
    assert sessions.read(sessions.cookie(session)) is None
    assert sessions.is_closed(session)


def test_a_cookie_is_not_renewed_at_every_request(sessions: Sessions, clock: Clock) -> None:
    """Only when it is a minute old."""
    session = sessions.open()
    clock.now += 59
    assert sessions.renewed(session) is None
    clock.now += 1
    assert sessions.renewed(session) is not None


def test_a_closed_session_is_refused_with_every_copy_of_its_cookie(sessions: Sessions, clock: Clock) -> None:
    """The one closed, its renewed copies, and no other."""
    session, other = sessions.open(), sessions.open()
    clock.now += 100
    copies = [sessions.cookie(session), sessions.cookie(sessions.renewed(session) or session)]
    sessions.close(session)
    assert [sessions.read(copy) for copy in copies] == [None, None]
    assert sessions.is_closed(session)
    assert sessions.read(sessions.cookie(other)) == other


def test_closed_sessions_are_forgotten_when_they_could_not_live_anyhow(sessions: Sessions, clock: Clock) -> None:
    """What is remembered of logouts is bounded."""
    for _ in range(5000):
        sessions.close(sessions.open())
    assert len(sessions._closed) == 4096
    clock.now += LIFETIME_S
    sessions.close(sessions.open())
    assert len(sessions._closed) == 1


def test_tokens_are_of_one_session(sessions: Sessions) -> None:
    """The token against forgery differs from session to session, and is not the cookie's signature."""
    one, other = sessions.open(), sessions.open()
    assert sessions.csrf_token(one) != sessions.csrf_token(other)
    assert sessions.csrf_token(one) not in sessions.cookie(one)


def test_stacks_at_one_host_have_cookies_of_their_own() -> None:
    """Cookies do not know ports, so their name knows the stack."""
    assert Sessions(KEY).cookie_name == Sessions(KEY).cookie_name != Sessions(new_admin_key()).cookie_name


def test_wrong_keys_are_slowed_down_by_address(clock: Clock) -> None:
    """Five failures a minute; another address goes on; a right key forgets them."""
    throttle = LoginThrottle(clock=clock)
    for _ in range(5):
        assert throttle.wait_s("a") == 0
        throttle.failed("a")
        clock.now += 1
    assert throttle.wait_s("a") == 55
    assert throttle.wait_s("b") == 0
    clock.now += 55
    assert throttle.wait_s("a") == 0
    throttle.failed("a")
    assert throttle.wait_s("a") == 1  # the second of the first five is the oldest now
    throttle.succeeded("a")
    assert throttle.wait_s("a") == 0


def test_addresses_that_failed_are_bounded(clock: Clock) -> None:
    """The one that failed longest ago is forgotten first."""
    throttle = LoginThrottle(tries=1, max_addresses=3, clock=clock)
    for address in "abcd":
        throttle.failed(address)
    assert [throttle.wait_s(address) > 0 for address in "abcd"] == [False, True, True, True]
