"""Template stories: long, grammatical, checkable output for a model that is too small to invent any.

A story is a fixed sequence of sentences with open slots. Each hero has a favourite filling for every slot, derived from
a hash of its name, and training tells that one three times out of four. So greedy decoding has one clear answer,
sampling at a temperature varies, and whatever comes out can still be checked against the grammar.

Names and closing signs are deliberately not ASCII: the tokenizer spells them byte by byte, so a stream of stories keeps
cutting characters in half, which is what an incremental detokeniser has to survive.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

__all__ = ["HEROES", "favourite", "matches", "tell"]

HEROES: dict[str, tuple[str, str]] = {
    "bear": ("Björn", "🐻"),
    "bee": ("Maël", "🐝"),
    "cat": ("Renée", "🐱"),
    "crow": ("Łucja", "🐦"),
    "dog": ("Jürgen", "🐶"),
    "duck": ("Inés", "🦆"),
    "fox": ("Zoé", "🦊"),
    "frog": ("Søren", "🐸"),
    "goat": ("Håkon", "🐐"),
    "hare": ("Noël", "🐰"),
    "hen": ("Chloé", "🐔"),
    "horse": ("Íris", "🐴"),
    "lion": ("León", "🦁"),
    "mouse": ("Žofie", "🐭"),
    "snail": ("Gülay", "🐌"),
    "wolf": ("Łukasz", "🐺"),
}
"""Animal -> (its name, its sign). No animal begins with a vowel, so that "a" is always the right article."""

_SLOTS: dict[str, tuple[str, ...]] = {
    "mood": ("small", "quiet", "brave", "clever", "hungry"),
    "home": ("by the river", "under an old oak", "behind the mill", "on a green hill"),
    "season": ("spring", "summer", "autumn", "winter"),
    "found": ("found", "saw", "heard of"),
    "thing": ("a silver key", "a paper boat", "a blue door", "a map of the stars", "a basket of plums"),
    "wish": ("show it to a friend", "know where it came from", "keep it safe", "give it back"),
    "speech": ("Come with me", "Let us look together", "Do not be afraid", "I know the way"),
    "deed": ("walked", "sang", "searched", "waited"),
    "until": ("until the moon rose", "until the rain began", "until noon", "for three days"),
    "treat": ("hot cocoa", "a crème brûlée", "honey cake", "a bowl of soup"),
    "ending": ("slept well", "laughed a lot", "told everyone", "was never lonely again"),
}

_TEMPLATE = (
    "Once upon a time a {mood} {hero} called {name} lived {home}. "
    "One {season} morning {name} {found} {thing} and wanted to {wish}. "
    "Then a {friend} called {friend_name} came by and said: “{speech}!” "
    "So {name} and {friend_name} {deed} together {until}. "
    "In the evening they had {treat} at the café, and {name} {ending}. {sign}{friend_sign}"
)

_CANONICAL_SHARE = 0.75


def _favoured(hero: str, slot: str, options: tuple[str, ...]) -> str:
    digest = hashlib.blake2b(f"{hero}/{slot}".encode(), digest_size=4).digest()
    return options[int.from_bytes(digest, "big") % len(options)]


def favourite(hero: str, slot: str) -> str:
    """The filling `hero` prefers for `slot`; for the slot "friend", the companion of a hero asked for alone.

    :raises KeyError: an unknown hero or slot.
    """
    if slot == "friend":
        return _favoured(hero, slot, tuple(animal for animal in HEROES if animal != hero))
    return _favoured(hero, slot, _SLOTS[slot])


def tell(hero: str, friend: str | None = None, *, rng: Random | None = None) -> str:
    """The story of `hero`, met by `friend` (or by its favourite one).

    Without `rng` it is the one canonical telling. With it, each slot strays from the favourite one time in four.

    :raises KeyError: an animal that is not in `HEROES`.
    """
    friend = friend or favourite(hero, "friend")
    fillings = {}
    for slot, options in _SLOTS.items():
        stray = rng is not None and rng.random() > _CANONICAL_SHARE
        fillings[slot] = rng.choice(options) if rng is not None and stray else favourite(hero, slot)
    return _TEMPLATE.format(**fillings, **_cast(hero, friend))


def matches(text: str, hero: str, friend: str | None = None) -> bool:
    """Whether `text` is some telling of the story of `hero`, with `friend` in it where one is given."""
    friends = [friend] if friend else [animal for animal in HEROES if animal != hero]
    return any(_pattern(hero, other).fullmatch(text.strip()) for other in friends)


def _cast(hero: str, friend: str) -> dict[str, str]:
    (name, sign), (friend_name, friend_sign) = HEROES[hero], HEROES[friend]
    return {
        "hero": hero,
        "name": name,
        "sign": sign,
        "friend": friend,
        "friend_name": friend_name,
        "friend_sign": friend_sign,
    }


def _pattern(hero: str, friend: str) -> re.Pattern[str]:
    fixed = {slot: re.escape(word) for slot, word in _cast(hero, friend).items()}
    slots = {slot: "(?:" + "|".join(map(re.escape, options)) + ")" for slot, options in _SLOTS.items()}
    parts = re.split(r"\{(\w+)\}", _TEMPLATE)
    return re.compile(
        "".join((fixed | slots)[part] if index % 2 else re.escape(part) for index, part in enumerate(parts))
    )
