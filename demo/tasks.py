"""Exact tasks: questions whose one right answer is known, so that a test can say that a served answer is *right*.

Everything is drawn from the `random.Random` that is passed in and split by a hash of the question itself. So a seed
gives the same questions in every process, and a question is either for training or held out, whoever asks and in
whatever order.
"""

from __future__ import annotations

import datetime
import hashlib
import string
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from demo import stories

__all__ = ["EXACT_KINDS", "KINDS", "Task", "check", "is_held_out", "sample"]

_HELD_OUT_EVERY = 10
_DAYS = (datetime.date(1950, 1, 1), datetime.date(2049, 12, 31))
# Written out, since strftime("%B") follows the locale of the process.
_MONTH_NAMES = "January February March April May June July August September October November December"
_MONTHS = tuple(_MONTH_NAMES.split())
_COUNT_TOP, _COUNT_SPAN = 120, 100
_LETTERS = string.ascii_lowercase
_SYLLABLES = """
ba ke li mo nu ra se ti vo ya dor fen gal hin jup kor lam mer nis pol quin ras sul tam ver wen zim cha sto pri
"""
_WORDS = """
river stone apple bread candle garden window market bridge school pencil yellow orange purple silver winter summer
spring autumn morning evening thunder rabbit turtle dragon castle forest island ocean desert valley mountain village
doctor teacher farmer baker painter singer writer captain pirate wizard queen prince knight music guitar violin
trumpet piano dance theater letter paper number seven eleven twelve twenty hundred thousand million little heavy
bright hollow gentle clever hungry thirsty happy sorry lonely quick simple double triple bottle basket blanket
pillow mirror ladder hammer button pocket jacket sweater ribbon velvet cotton copper golden crystal diamond emerald
butterfly elephant kangaroo strawberry blueberry chocolate breakfast sandwich umbrella telephone computer keyboard
language question answer history science station airport harbour lantern compass journey weather rainbow
"""


@dataclass(frozen=True, slots=True)
class Task:
    """One question (the text of a user message) and its answer (the text of the assistant's).

    `identity` names the question apart from its phrasing: `37+58=`, `58 + 37 =` are one and the same.
    """

    kind: str
    prompt: str
    answer: str
    identity: str


def is_held_out(task: Task) -> bool:
    """Whether training never sees `task`, in any phrasing: one question in ten, by a hash of kind and identity.

    A story about a single hero is never held out: a hero that training has not met has no story to tell.
    """
    if task.kind == "story" and "," not in task.identity:
        return False
    digest = hashlib.blake2b(f"{task.kind}:{task.identity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _HELD_OUT_EVERY == 0


def sample(kind: str, rng: Random, *, held_out: bool | None = None) -> Task:
    """Draw a task of `kind`: held out, for training (False), or either (None).

    :raises KeyError: a kind that is not in `KINDS`.
    """
    make = _MAKERS[kind]
    while True:
        task = make(rng)
        if held_out is None or is_held_out(task) == held_out:
            return task


def check(task: Task, text: str) -> bool:
    """Whether `text` answers `task`; white space around it is forgiven, and a story may be told in any of its ways."""
    if task.kind == "story":
        return stories.matches(text, *task.identity.split(","))
    return text.strip() == task.answer


def _add(rng: Random) -> Task:
    a, b = (rng.randrange(10 ** rng.choice((1, 2, 3, 3, 3))) for _ in range(2))
    prompt = f"{a}+{b}=" if rng.random() < 0.8 else f"{a} + {b} ="
    return Task("add", prompt, str(a + b), f"{min(a, b)}+{max(a, b)}")


def _sort(rng: Random) -> Task:
    top = rng.choice((10, 20, 100, 100))
    numbers = [rng.randrange(top) for _ in range(rng.randint(2, 7))]
    text = " ".join(map(str, numbers))
    return Task("sort", f"sort: {text}", " ".join(map(str, sorted(numbers))), text)


def _copy(rng: Random) -> Task:
    text = "".join(rng.choices(_LETTERS + string.digits, k=rng.randint(2, 20)))
    return Task("copy", f"copy: {text}", text, text)


def _reverse(rng: Random) -> Task:
    text = "".join(rng.choices(_LETTERS, k=rng.randint(2, 12)))
    return Task("reverse", f"reverse: {text}", text[::-1], text)


def _spell(rng: Random) -> Task:
    invented = "".join(rng.choices(_SYLLABLES.split(), k=rng.randint(1, 4)))
    word = rng.choice((invented, rng.choice(_WORDS.split())))
    return Task("spell", f"spell: {word}", "-".join(word), word)


def _day(rng: Random) -> datetime.date:
    first, last = _DAYS
    day = first + datetime.timedelta(days=rng.randint(0, (last - first).days))
    if rng.random() < 0.25:
        # The ends of months are where the day after is hard, and one day in thirty would be too few of them.
        day = day.replace(day=1) - datetime.timedelta(days=1) if day > first.replace(day=31) else day
    return day


def _in_words(day: datetime.date) -> str:
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


def _date(rng: Random) -> Task:
    day = _day(rng)
    text = _in_words(day)
    return Task("date", f"date: {text}", day.isoformat(), text)


def _day_after(rng: Random) -> Task:
    day = _day(rng)
    text = _in_words(day)
    return Task("day_after", f"day after: {text}", (day + datetime.timedelta(days=1)).isoformat(), text)


def _count(rng: Random) -> Task:
    span = rng.randint(1, _COUNT_SPAN - 1)
    first = 1 if rng.random() < 0.3 else rng.randint(1, _COUNT_TOP - span)
    last = first + span
    text = f"{first} to {last}"
    return Task("count", f"count: {text}", " ".join(map(str, range(first, last + 1))), text)


def _story(rng: Random) -> Task:
    hero, friend = rng.sample(sorted(stories.HEROES), k=2)
    if rng.random() < 0.4:
        prompt = f"story: {hero}" if rng.random() < 0.5 else f"tell me a story about a {hero}"
        return Task("story", prompt, stories.tell(hero), hero)
    prompt = f"story: {hero} and {friend}" if rng.random() < 0.5 else f"tell me a story about a {hero} and a {friend}"
    return Task("story", prompt, stories.tell(hero, friend), f"{hero},{friend}")


_MAKERS: dict[str, Callable[[Random], Task]] = {
    "add": _add,
    "sort": _sort,
    "copy": _copy,
    "reverse": _reverse,
    "spell": _spell,
    "date": _date,
    "day_after": _day_after,
    "count": _count,
    "story": _story,
}

KINDS: tuple[str, ...] = tuple(_MAKERS)
"""Every kind of task."""

EXACT_KINDS: tuple[str, ...] = tuple(kind for kind in KINDS if kind != "story")
"""The kinds with a single right answer."""
