"""The questions and answers of the demo model."""

from __future__ import annotations

import datetime
import subprocess
import sys
from random import Random

import pytest

from demo import stories
from demo.tasks import EXACT_KINDS, KINDS, Task, check, is_held_out, sample

_DRAWS = 300


def _tasks(kind: str, *, seed: int = 7, held_out: bool | None = None) -> list[Task]:
    rng = Random(seed)
    return [sample(kind, rng, held_out=held_out) for _ in range(_DRAWS)]


def _right_answer(task: Task) -> str:
    """The answer worked out from the prompt alone, in another way than `demo.tasks` does."""
    question = task.prompt.partition(": ")[2]
    match task.kind:
        case "add":
            return str(sum(int(part) for part in task.prompt.rstrip(" =").split("+")))
        case "sort":
            return " ".join(sorted(question.split(), key=int))
        case "copy":
            return question
        case "reverse":
            return "".join(reversed(question))
        case "spell":
            return "".join(f"{letter}-" for letter in question)[:-1]
        case "date" | "day_after":
            day = datetime.datetime.strptime(question, "%d %B %Y").date()
            return str(day if task.kind == "date" else datetime.date.fromordinal(day.toordinal() + 1))
        case "count":
            first, last = question.split(" to ")
            return " ".join(str(number) for number in range(int(first), int(last) + 1))
    raise AssertionError(f"no other way to answer {task.kind!r} is known")


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_fixes_the_questions(kind: str) -> None:
    """The same seed draws the same tasks, and another seed others."""
    assert _tasks(kind, seed=1) == _tasks(kind, seed=1)
    assert _tasks(kind, seed=1) != _tasks(kind, seed=2)


def test_questions_do_not_depend_on_the_hash_seed() -> None:
    """Two processes with different PYTHONHASHSEED draw the same tasks and tell the same stories."""
    script = (
        "from random import Random; from demo.tasks import *; rng = Random(3); "
        "print([sample(kind, rng, held_out=held_out) for kind in KINDS for held_out in (True, False)])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            check=True,
            encoding="utf-8",
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert "story" in printed.pop()


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_and_training_questions_are_disjoint(kind: str) -> None:
    """No question drawn as held out is ever drawn for training, in any phrasing."""
    held_out, training = _tasks(kind, held_out=True), _tasks(kind, held_out=False)
    assert {task.identity for task in held_out}.isdisjoint(task.identity for task in training)
    assert {task.prompt for task in held_out}.isdisjoint(task.prompt for task in training)


def test_phrasing_and_order_of_a_sum_do_not_change_its_side() -> None:
    """58+37= is held out if and only if 37+58= is."""
    sides: dict[str, set[bool]] = {}
    for task in _tasks("add"):
        a, b = sorted(int(part) for part in task.prompt.rstrip(" =").split("+"))
        sides.setdefault(f"{a}+{b}", set()).add(is_held_out(task))
        assert task.identity == f"{a}+{b}"
    assert all(len(side) == 1 for side in sides.values())


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_about_a_tenth_is_held_out(kind: str) -> None:
    """The split leaves most questions to training and enough to measure with."""
    questions = {task.identity: is_held_out(task) for seed in range(5) for task in _tasks(kind, seed=seed)}
    assert 0.04 < sum(questions.values()) / len(questions) < 0.18


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_answers_are_right(kind: str) -> None:
    """Every answer equals the one computed from its prompt by other means."""
    for task in _tasks(kind):
        assert task.answer == _right_answer(task)


@pytest.mark.parametrize("kind", KINDS)
def test_check_accepts_the_answer_and_refuses_others(kind: str) -> None:
    """An answer passes with white space around it; a changed, cut, lengthened or empty one does not."""
    for task in _tasks(kind):
        assert check(task, task.answer)
        assert check(task, f" {task.answer}\n")
        assert not check(task, task.answer[:-1])
        assert not check(task, f"{task.answer}0")
        assert not check(task, "#" + task.answer[1:])
        assert not check(task, "")


def test_a_story_may_be_told_in_several_ways() -> None:
    """Any telling about the right animals passes, and one about others does not."""
    rng = Random(5)
    told = {stories.tell("fox", "hen", rng=rng) for _ in range(30)}
    assert len(told) > 20
    assert all(stories.matches(text, "fox", "hen") and stories.matches(text, "fox") for text in told)
    assert not any(stories.matches(text, "fox", "wolf") or stories.matches(text, "hen") for text in told)


def test_every_story_has_characters_of_two_three_and_four_bytes() -> None:
    """Stories carry text whose characters a byte-level stream cuts in pieces."""
    for hero in stories.HEROES:
        assert {2, 3, 4} <= {len(character.encode()) for character in stories.tell(hero)}


def test_counts_are_long_enough_for_long_streams() -> None:
    """Counting gives checkable answers of up to a hundred numbers."""
    assert max(len(task.answer.split()) for task in _tasks("count")) >= 95


def test_an_unknown_kind_is_an_error() -> None:
    """Asking for a kind that does not exist raises KeyError."""
    with pytest.raises(KeyError):
        sample("divide", Random(0))
