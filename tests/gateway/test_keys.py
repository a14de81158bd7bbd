from __future__ import annotations

import string

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.keys import (
    KeyRecord,
    KeyState,
    Verdict,
    check_key,
    key_state,
    new_admin_key,
    new_key,
    parse_admin_key,
    parse_key,
    revoked,
    rotated,
)

PEPPER = b"pepper" * 6
NOW = 1_000_000.0
ALPHABET = string.ascii_letters + string.digits

random_bytes = st.randoms(use_true_random=False).map(lambda random: random.randbytes)


def _made(**fields: object) -> tuple[KeyRecord, str]:
    key_id, text, digest = new_key(PEPPER)
    record = KeyRecord(id=key_id, tenant="acme", digest=digest, created_unix_s=NOW)
    return msgspec.structs.replace(record, **fields), text


def _check(record: KeyRecord | None, text: str, *, at: float = NOW) -> Verdict:
    return check_key(record, text, pepper=PEPPER, now_unix_s=at)


@given(random_bytes)
def test_a_new_key_has_its_form_and_parses_to_its_id(source: object) -> None:
    """sk-hg-<id>-<secret>: 68 characters that need no quoting anywhere."""
    key_id, text, digest = new_key(PEPPER, random_bytes=source)  # type: ignore[arg-type]
    assert text.startswith(f"sk-hg-{key_id}-")
    assert len(text) == 68
    assert set(text) <= set(ALPHABET + "-")
    assert parse_key(text) == key_id
    assert not parse_admin_key(text)
    assert text.rsplit("-", 1)[1] not in digest


@given(random_bytes, st.integers(0, 67), st.characters(codec="utf-8"))
def test_a_changed_character_is_refused_without_a_look_up(source: object, position: int, other: str) -> None:
    """The checksum finds every single wrong character, in the id, the secret and itself."""
    text = new_key(PEPPER, random_bytes=source)[1]  # type: ignore[arg-type]
    assume(text[position] != other)
    assert parse_key(text[:position] + other + text[position + 1 :]) is None


@given(random_bytes, st.integers(6, 66))
def test_swapped_neighbours_are_refused(source: object, position: int) -> None:
    """The commonest typo by hand. Across the border of the checksum the digest alone catches all of them."""
    text = new_key(PEPPER, random_bytes=source)[1]  # type: ignore[arg-type]
    assume(text[position] != text[position + 1] and position != 61)
    assert parse_key(text[:position] + text[position + 1] + text[position] + text[position + 2 :]) is None


@given(random_bytes, st.integers(1, 67))
def test_a_key_that_is_cut_or_grown_is_refused(source: object, length: int) -> None:
    """A line that was wrapped, a newline that came along."""
    text = new_key(PEPPER, random_bytes=source)[1]  # type: ignore[arg-type]
    assert parse_key(text[:length]) is None
    assert parse_key(text[length:]) is None
    assert parse_key(text + "a") is None
    assert parse_key(text + "\n") is None


@given(st.text(max_size=100))
def test_no_text_is_a_key_by_chance_or_raises(text: str) -> None:
    """It comes from a header that anybody can send."""
    assert parse_key(text) is None
    assert parse_key("sk-hg-" + text) is None
    assert not parse_admin_key("sk-hg-admin-" + text)


def test_the_classes_exclude_each_other() -> None:
    """An admin key is no tenant's key, though both begin alike."""
    admin = new_admin_key()
    assert parse_admin_key(admin)
    assert parse_key(admin) is None


def test_keys_do_not_repeat() -> None:
    """Ids and secrets are random each time."""
    made = [new_key(PEPPER) for _ in range(200)]
    assert len({key_id for key_id, _, _ in made}) == len({text for _, text, _ in made}) == 200


def test_what_is_kept_does_not_hold_the_secret() -> None:
    """A copy of the bucket opens nothing."""
    record, text = _made()
    assert text.rsplit("-", 1)[1] not in msgspec.json.encode(record).decode()


def test_a_valid_key_is_valid() -> None:
    """With its record and the pepper it was made with."""
    record, text = _made(expires_unix_s=NOW + 1)
    assert _check(record, text) is Verdict.valid


def test_a_wrong_secret_and_an_unknown_id_are_not_told_apart() -> None:
    """Else ids could be found out."""
    record, text = _made()
    other = new_key(PEPPER)[1]
    assert _check(record, other) is Verdict.unknown
    assert _check(None, text) is Verdict.unknown


def test_another_pepper_knows_no_key() -> None:
    """The digests are worth nothing without it."""
    record, text = _made()
    assert check_key(record, text, pepper=b"other" * 8, now_unix_s=NOW) is Verdict.unknown


def test_a_revoked_key_is_told_so_only_with_its_secret() -> None:
    """Who guesses learns nothing about which ids there were."""
    record, text = _made()
    gone = revoked(record, now_unix_s=NOW)
    assert _check(gone, text) is Verdict.revoked
    assert _check(gone, new_key(PEPPER)[1]) is Verdict.unknown
    assert revoked(gone, now_unix_s=NOW + 9) == gone


def test_a_key_expires_at_its_instant() -> None:
    """Valid before it, never from it on."""
    record, text = _made(expires_unix_s=NOW + 10)
    assert _check(record, text, at=NOW + 9.99) is Verdict.valid
    assert _check(record, text, at=NOW + 10) is Verdict.expired


def test_a_rotated_key_is_good_within_its_grace_and_the_new_one_at_once() -> None:
    """Clients change over without a gap; after the grace the old secret is told why."""
    record, old = _made()
    changed, new = rotated(record, PEPPER, grace_s=60, now_unix_s=NOW)
    assert changed.id == record.id == parse_key(new)
    assert _check(changed, new) is Verdict.valid
    assert _check(changed, old, at=NOW + 59.9) is Verdict.valid
    assert _check(changed, old, at=NOW + 60) is Verdict.superseded
    assert _check(changed, new, at=NOW + 1e6) is Verdict.valid


def test_a_second_rotation_ends_the_first_secret_at_once() -> None:
    """Two secrets at most are good at any time."""
    record, first = _made()
    once, second = rotated(record, PEPPER, grace_s=600, now_unix_s=NOW)
    twice, third = rotated(once, PEPPER, grace_s=600, now_unix_s=NOW + 1)
    assert [_check(twice, text, at=NOW + 2) for text in (first, second, third)] == [
        Verdict.unknown,
        Verdict.valid,
        Verdict.valid,
    ]


@pytest.mark.parametrize("ended", ["revoked", "expired"])
def test_the_grace_of_a_rotation_does_not_outlive_the_key(ended: str) -> None:
    """Revoked or expired means both secrets."""
    record, old = _made(expires_unix_s=NOW + 10 if ended == "expired" else None)
    changed, new = rotated(record, PEPPER, grace_s=600, now_unix_s=NOW)
    if ended == "revoked":
        changed = revoked(changed, now_unix_s=NOW)
    assert [_check(changed, text, at=NOW + 20) for text in (old, new)] == [Verdict(ended)] * 2


def test_rotation_without_grace_ends_the_old_secret_now() -> None:
    """For a secret that leaked."""
    record, old = _made()
    changed, _ = rotated(record, PEPPER, grace_s=0, now_unix_s=NOW)
    assert _check(changed, old) is Verdict.superseded


def test_states_as_lists_show_them() -> None:
    """Active, rotating within the grace, expired, revoked; revoked wins."""
    record, _ = _made(expires_unix_s=NOW + 100)
    changed, _ = rotated(record, PEPPER, grace_s=60, now_unix_s=NOW)
    assert [
        key_state(one, at) for one, at in ((record, NOW), (changed, NOW), (changed, NOW + 60), (record, NOW + 100))
    ] == [
        KeyState.active,
        KeyState.rotating,
        KeyState.active,
        KeyState.expired,
    ]
    assert key_state(revoked(record, now_unix_s=NOW), NOW + 100) is KeyState.revoked


def test_a_record_survives_json_and_unknown_fields_of_a_later_version() -> None:
    """Gateways of two versions read the same bucket during an upgrade."""
    record, _ = _made(models=("m",), tier_ceiling="flex")
    later = msgspec.json.decode(msgspec.json.encode(record)) | {"invented_later": 1}
    assert msgspec.json.decode(msgspec.json.encode(later), type=KeyRecord) == record
