"""The sampling kernel: what `gpu_worker.sampling` defines, one row at a time and without sorting.

Top-k and top-p need no order, only a threshold: the k-th largest probability, or the one from which they add up to p.
It is found by bisection over the bit patterns of the probabilities (those of positive floats are ordered as they are):
a few passes over all, then, on the few left between the bounds, to the last bit.
"""

# The functions below are compiled by numba, which infers their types.
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from gpu_worker.cpu.dialect import as_double, bf16_at, exp, f32_at, float_of_bits, i32_at, i64_at, load, log, take

__all__ = ["ROW_WIDTH", "sample_bf16", "sample_f32"]

#: int64 fields of a row: see `_sample`.
ROW_WIDTH = 20
_FAST = {"fastmath": True, "error_model": "numpy"}
_ONE_BITS = 0x3F800001  # just above 1.0, the largest probability (relative to the best)


@njit(**_FAST)
def _argmax(x, at, width):
    best = np.float32(-3e38)
    for i in range(width):
        best = max(best, load(x, at + i))
    found = width
    for i in range(width):  # the first that is it; a loop that stops early does not vectorise
        found = min(found, i if load(x, at + i) == best else width)
    return min(found, width - 1)


@njit(**_FAST)
def _weight(e, width, threshold, by_mass):
    """How many of e[:width] are at least `threshold`, or what they add up to."""
    if by_mass:
        mass = np.float32(0.0)
        for i in range(width):
            mass += e[i] if e[i] >= threshold else np.float32(0.0)
        return mass
    count = np.int32(0)
    for i in range(width):
        count += np.int32(1) if e[i] >= threshold else np.int32(0)
    return np.float32(count)


@njit(**_FAST)
def _threshold(e, width, few, target, by_mass):
    """The largest t with weight(e >= t) >= target. `few` is scratch of `width`."""
    low, high = np.int32(0), np.int32(_ONE_BITS)  # weight(low) >= target > weight(high)
    for _ in range(8):
        middle = low + (high - low) // np.int32(2)
        if _weight(e, width, float_of_bits(middle), by_mass) >= target:
            low = middle
        else:
            high = middle
    above = _weight(e, width, float_of_bits(high), by_mass)
    bottom, top, kept = float_of_bits(low), float_of_bits(high), 0
    for i in range(width):
        if bottom <= e[i] < top:
            few[kept] = e[i]
            kept += 1
    while high - low > 1:
        middle = low + (high - low) // np.int32(2)
        if above + _weight(few, kept, float_of_bits(middle), by_mass) >= target:
            low = middle
        else:
            high = middle
    return float_of_bits(low)


@njit(**_FAST)
def _mix(x):
    """Chris Wellons' lowbias32. (Numba widens 32-bit arithmetic to 64 bits; the casts take it back.)"""
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit(**_FAST)
def _draw(e, scores, width, threshold, key0, key1):
    """The token with the largest log(e / noise) of those with e >= threshold."""
    for i in range(width):
        h = _mix(np.uint32(_mix(np.uint32(np.uint32(i) + key0)) ^ key1))
        v = (np.float32(h) + np.float32(0.5)) * np.float32(2.3283064365386963e-10)
        v = min(v, np.float32(0.99999994))
        series = v * (np.float32(1.0) + v * (np.float32(0.5) + v * (np.float32(0.33333333) + v * np.float32(0.25))))
        noise = series if v < np.float32(0.01) else -log(np.float32(1.0) - v)
        scores[i] = log(e[i]) - log(noise) if e[i] >= threshold else np.float32(-3e38)


@njit(**_FAST)
def _penalise(x, count, row, tokens, ids, values):
    """Logit bias, the three penalties, and the ban on stop tokens, in place on x."""
    begin, prompt, known = row[7], row[8], row[9]
    repetition, frequency, presence = (
        np.float32(as_double(row[10])),
        np.float32(as_double(row[11])),
        np.float32(as_double(row[12])),
    )
    for i in range(row[13], row[14]):
        x[ids[i]] += values[i]
    if repetition != np.float32(1.0):
        for i in range(begin, begin + known):
            token = tokens[i]
            if count[token] == 0:
                count[token] = 1
                x[token] = x[token] / repetition if x[token] > np.float32(0.0) else x[token] * repetition
        for i in range(begin, begin + known):
            count[tokens[i]] = 0
    if frequency != np.float32(0.0) or presence != np.float32(0.0):
        for i in range(begin + prompt, begin + known):
            count[tokens[i]] += 1
        for i in range(begin + prompt, begin + known):
            token = tokens[i]
            if count[token] > 0:
                x[token] -= frequency * np.float32(count[token]) + presence
                count[token] = 0
    for i in range(row[14], row[15]):
        x[ids[i]] = np.float32(-3e38)


@njit(**_FAST)
def _sample(p, logits):
    """Fields of a row: 0 plain greedy, 1 temperature, 2 top_k, 3 top_p, 4 min_p, 5 and 6 noise keys, 7 begin of its
    tokens in the table, 8 prompt tokens, 9 known tokens, 10 to 12 repetition, frequency, presence, 13 to 14 its range
    of biases, 14 to 15 that of banned tokens. Fractions are bits of doubles."""
    out, rows, width = i32_at(p[2]), p[3], p[4]
    tokens, ids, values = i32_at(p[6]), i32_at(p[7]), f32_at(p[8])
    plain_only = p[9]
    scratch = np.empty(1 if plain_only else 3 * width, np.float32)
    count = np.zeros(1 if plain_only else width, np.int32)
    while True:
        item = take(p)
        if item >= rows:
            return
        row = i64_at(p[5] + item * ROW_WIDTH * 8)
        at = item * width
        if row[0]:
            out[item] = _argmax(logits, at, width)
            continue
        x, few, scores = scratch[:width], scratch[width : 2 * width], scratch[2 * width :]
        best = np.float32(-3e38)
        for i in range(width):
            x[i] = load(logits, at + i)
        _penalise(x, count, row, tokens, ids, values)
        for i in range(width):
            best = max(best, x[i])
        temperature = np.float32(as_double(row[1]))
        if temperature <= np.float32(0.0):
            found = width
            for i in range(width):
                found = min(found, i if x[i] == best else width)
            out[item] = min(found, width - 1)
            continue
        inverse = np.float32(1.0) / temperature
        for i in range(width):
            x[i] = exp((x[i] - best) * inverse)
        threshold = np.float32(0.0)
        if 0 < row[2] < width:
            threshold = _threshold(x, width, few, np.float32(row[2]), False)
        top_p, min_p = np.float32(as_double(row[3])), np.float32(as_double(row[4]))
        if top_p < np.float32(1.0):
            mass = _weight(x, width, threshold, True)
            threshold = max(threshold, _threshold(x, width, few, max(top_p * mass, np.float32(1e-30)), True))
        threshold = max(threshold, min_p)
        _draw(x, scores, width, threshold, np.uint32(row[5]), np.uint32(row[6]))
        best = np.float32(-3e38)
        for i in range(width):
            best = max(best, scores[i])
        found = width
        for i in range(width):
            found = min(found, i if scores[i] == best else width)
        out[item] = min(found, width - 1)


def sample_f32(p):
    _sample(p, f32_at(p[1]))


def sample_bf16(p):
    _sample(p, bf16_at(p[1]))
