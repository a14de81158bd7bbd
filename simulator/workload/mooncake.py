"""Traces of Mooncake (FAST'25), JSON lines: timestamp (ms), input_length, output_length, hash_ids.

Equal leading `hash_ids` are equal leading blocks of 512 tokens. Stamps of the published conversation trace are ticks of
3.000 s with up to 28 requests on one: taken literally these arrive in one instant every 3 seconds, and burstiness and
queueing are the recorder's, not the service's. So arrivals are spread over their tick (see `spread_over_ticks`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

import msgspec

from simulator.errors import BadTrace
from simulator.records import PREFIX_TOKENS
from simulator.workload.fields import FieldError, Row, arrival, exact_tokens

__all__ = ["read_mooncake", "spread_over_ticks"]

_NEEDED = ("timestamp", "input_length", "output_length")
#: A grid of stamps coarser than this is a recorder's tick; finer ones are clock readings that happened to be equal.
_LEAST_TICK_S = 0.1
_TOLERANCE = 0.01
_LOOKED_AT = 64  # distinct stamps, from which the tick is found


def read_mooncake(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
    """The requests of a Mooncake trace; `hash_ids` may be absent. Instants are as stamped, in seconds.

    :raises BadTrace: a line is no JSON object, a field is missing or wrong, or stamps are not in order.
    """
    before = 0.0
    for line, text in lines:
        try:
            entry = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadTrace(path, line, f"not JSON ({error}): {text[:80]!r}; one object a line is needed") from None
        if not isinstance(entry, dict):
            raise BadTrace(
                path, line, f"{text[:80]!r} is no JSON object; a line is an object with {', '.join(_NEEDED)}"
            )
        missing = [name for name in _NEEDED if name not in entry]
        if missing:
            raise BadTrace(path, line, f"{', '.join(missing)} is missing; a line has {', '.join(_NEEDED)}, hash_ids")
        try:
            row = _row(line, entry)
        except FieldError as error:
            raise BadTrace(path, line, str(error)) from None
        if row.at_s < before:
            raise BadTrace(
                path,
                line,
                f"timestamp {entry['timestamp']} comes after {before * 1e3:g}; arrivals must be in order of time",
            )
        before = row.at_s
        yield row


def _row(line: int, entry: dict[str, object]) -> Row:
    stamp = entry["timestamp"]
    if isinstance(stamp, bool) or not isinstance(stamp, int | float):
        raise FieldError(f"timestamp is {stamp!r}; a number of milliseconds is needed")
    if isinstance(stamp, int) and stamp.bit_length() > 62:
        raise FieldError(f"timestamp is {stamp}; milliseconds from the beginning of the trace are needed")
    at_s = arrival("timestamp", float(stamp)) / 1e3
    prompt = exact_tokens("input_length", entry["input_length"])
    ids = entry.get("hash_ids", [])
    if not isinstance(ids, list):
        raise FieldError(f"hash_ids is {ids!r}; a list of whole numbers is needed")
    for value in ids:
        if type(value) is not int:
            raise FieldError(f"hash_ids has {value!r}; whole numbers are needed")
    most = math.ceil(prompt / PREFIX_TOKENS)
    if len(ids) > most:
        raise FieldError(
            f"hash_ids has {len(ids)} blocks of {PREFIX_TOKENS} tokens; input_length {prompt} has room for {most}"
        )
    return Row(line, at_s, None, prompt, exact_tokens("output_length", entry["output_length"]), tuple(ids))


def spread_over_ticks(rows: Iterator[Row], *, seed: int) -> Iterator[Row]:
    """Moves every arrival to a uniformly drawn instant of its tick, [stamp, stamp + tick); order of file is kept as is.

    There is a tick if stamps repeat among the first 64 distinct ones and nine of ten gaps between these are multiples
    of their median, of 0.1 s or more, but for a hundredth: published ticks are off by a millisecond or two. Otherwise
    nothing moves. The instant of a row depends on the seed and its place in the file alone.
    """
    head: list[Row] = []
    stamps: list[float] = []
    for row in rows:
        head.append(row)
        if not stamps or row.at_s > stamps[-1]:
            stamps.append(row.at_s)
            if len(stamps) > _LOOKED_AT:
                break
    tick_s = 0.0 if len(stamps) == len(head) else _tick_s([after - before for before, after in pairwise(stamps)])
    if not tick_s:
        yield from chain(head, rows)
        return
    draw = random.Random(f"ticks {seed}").random
    for row in chain(head, rows):
        yield row._replace(at_s=row.at_s + tick_s * draw())


def _tick_s(gaps: list[float]) -> float:
    """0: there is none."""
    if not gaps:
        return 0.0
    tick_s = sorted(gaps)[len(gaps) // 2]
    on_grid = sum(abs(gap - tick_s * round(gap / tick_s)) <= tick_s * _TOLERANCE for gap in gaps)
    return tick_s if tick_s >= _LEAST_TICK_S and on_grid >= 0.9 * len(gaps) else 0.0
