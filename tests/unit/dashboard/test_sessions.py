"""Sessions: what a cookie is worth, and for how long."""

from __future__ import annotations

from orchestrator.dashboard.sessions import LIFETIME_S, MOST, Sessions


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_seat_is_signed_in_until_its_time_is_over():
    clock = Clock()
    sessions = Sessions(clock)
    assert not sessions.is_signed_in(sessions.new_seat())
    seat = sessions.sign_in()
    assert sessions.is_signed_in(seat)
    clock.now += LIFETIME_S
    assert not sessions.is_signed_in(seat)


def test_signing_out_ends_it_at_once_and_only_it():
    sessions = Sessions()
    one, other = sessions.sign_in(), sessions.sign_in()
    sessions.sign_out(one)
    assert (sessions.is_signed_in(one), sessions.is_signed_in(other)) == (False, True)


def test_of_too_many_the_oldest_ends():
    sessions = Sessions()
    seats = [sessions.sign_in() for _ in range(MOST + 1)]
    assert not sessions.is_signed_in(seats[0])
    assert all(map(sessions.is_signed_in, seats[1:]))


def test_a_form_s_token_is_of_its_seat_and_of_its_process():
    sessions, seat = Sessions(), Sessions.new_seat()
    token = sessions.form_token(seat)
    assert sessions.fits(seat, token)
    assert not sessions.fits(Sessions.new_seat(), token)
    assert not Sessions().fits(seat, token)
    assert not sessions.fits(seat, "")
    assert not sessions.fits(seat, "ä" * 64)
