"""The model of step durations follows the device, and its upper quantile means what it says."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from policies.step_time import Features, StepTimeModel, step_time
from policies.vocabulary import StepTimeCoefficients

TRUE = StepTimeCoefficients(0.010, 0.006, 4e-5, 1e-9, 5e-8, 2e-5)
WRONG = StepTimeCoefficients(0.008, 0.008, 8e-5)


def steps(seed: int, count: int) -> Iterator[Features]:
    """Mixed steps as a scheduler makes them: some decode alone, some with chunks of a prompt."""
    rng = random.Random(seed)
    for _ in range(count):
        rows = rng.randint(1, 64)
        context = sum(rng.randint(10, 2000) for _ in range(rows))
        chunk, before = rng.choice([0, 0, 0, 32, 256, 512, 1500]), rng.randint(0, 4000)
        yield Features(rows + chunk, chunk * (before + chunk / 2), context, rows + (chunk > 0))


def relative_error(model: StepTimeModel, truth: StepTimeCoefficients, seed: int) -> float:
    errors = [abs(model.predict(*f) / step_time(truth, *f) - 1) for f in steps(seed, 400)]
    return sum(errors) / len(errors)


def test_a_fresh_model_is_its_seed() -> None:
    """Before anything is observed, predictions are those of the self-benchmark."""
    model = StepTimeModel(TRUE)
    for features in steps(1, 50):
        assert model.predict(*features) == pytest.approx(step_time(TRUE, *features))
    assert model.observed == 0


def test_a_wrong_seed_is_corrected() -> None:
    """From a seed that is up to twice off and lacks half the terms, the fit comes within 2 % on average."""
    model, noise = StepTimeModel(WRONG), random.Random(2)
    assert relative_error(model, TRUE, 9) > 0.2
    for features in steps(3, 2000):
        model.observe(features, step_time(TRUE, *features) * noise.lognormvariate(0, 0.03))
    assert relative_error(model, TRUE, 9) < 0.02


@pytest.mark.parametrize("noise_s", [0.03, 0.15])
@pytest.mark.parametrize("drifts", [False, True], ids=["steady", "drifting"])
def test_nine_in_ten_stay_under_the_predicted_p90(noise_s: float, drifts: bool) -> None:
    """Calibration: 90 ± 3 % of actual times are below the predicted P90, with noise, outliers and drift alike."""
    model, noise = StepTimeModel(WRONG), random.Random(4)
    below = below95 = seen = 0
    for number, features in enumerate(steps(5, 5000)):
        actual = step_time(TRUE, *features) * noise.lognormvariate(0, noise_s)
        if drifts:
            actual *= 1 + number / 10_000 + (0.3 if number > 2500 else 0)
        if noise.random() < 0.01:
            actual *= 6  # a swap, a hiccup
        if number >= 500:
            predicted, ratios = model.predict(*features), model.ratios()
            seen += 1
            below += actual <= predicted * ratios.p90
            below95 += actual <= predicted * ratios.p95
        model.observe(features, actual)
    assert 0.87 <= below / seen <= 0.93
    assert 0.92 <= below95 / seen <= 0.98


def test_the_quantile_of_a_stratum_is_its_own() -> None:
    """Where large chunks are noisier than decode steps, each kind is covered nine times in ten by its own quantile."""
    model, noise = StepTimeModel(TRUE), random.Random(6)
    covered: dict[bool, list[bool]] = {True: [], False: []}
    for number, features in enumerate(steps(7, 5000)):
        large = features.tokens > 1024
        actual = step_time(TRUE, *features) * noise.lognormvariate(0, 0.2 if large else 0.02)
        if number > 500:
            covered[large].append(actual <= model.predict_upper(*features))
        model.observe(features, actual)
    for hits in covered.values():
        assert 0.86 <= sum(hits) / len(hits) <= 0.94


@pytest.mark.parametrize("kind", ["lognormal 10 %", "30 % and stragglers", "drift", "noisy prompts", "slow when full"])
def test_every_kind_of_step_is_covered_nine_times_in_ten(kind: str) -> None:
    """90 ± 3 % of a step's kind (prompts or none, a prefix hit or none, KV full or not) are below its predicted P90."""
    model, noise = StepTimeModel(WRONG), random.Random(16)
    hits: dict[str, list[bool]] = {}
    for number, features in enumerate(steps(17, 12_000)):
        actual = step_time(TRUE, *features)
        if kind == "30 % and stragglers":
            actual *= noise.lognormvariate(0, 0.3) * (5 if noise.random() < 0.01 else 1)
        elif kind == "noisy prompts":
            actual *= noise.lognormvariate(0, 0.2 if features.attended else 0.03)
        else:
            actual *= noise.lognormvariate(0, 0.05 if kind == "slow when full" else 0.1)
        if kind == "drift":
            actual *= 1 + number / 200_000  # 1 % a minute of steps of 30 ms
        if kind == "slow when full" and features.context > 32_768:
            actual *= 1.2
        if number >= 2000:
            below = actual <= model.predict_upper(*features)
            chunk = features.tokens - features.rows + 1
            names = ["prompt" if features.attended else "decode", "full" if features.context > 32_768 else "not full"]
            if features.attended:
                names.append("hit" if features.attended > chunk * chunk else "missed")
            for name in names:
                hits.setdefault(name, []).append(below)
        model.observe(features, actual)
    assert set(hits) == {"prompt", "decode", "full", "not full", "hit", "missed"}
    for name, below in hits.items():
        assert 0.87 <= sum(below) / len(below) <= 0.93, name


def test_rare_large_chunks_are_learned_among_decodes() -> None:
    """What they tell is judged by their own usual error: a fit that is a quarter off for them alone needs five."""
    model, noise = StepTimeModel(WRONG), random.Random(18)
    decodes = [features for features in steps(19, 9000) if not features.attended]
    prompt = Features(1500, 1500 * 750.0, 0, 1)
    for number, features in enumerate(decodes[:2250]):
        model.observe(features, step_time(TRUE, *features) * noise.lognormvariate(0, 0.003))
        if number == 2000:
            assert model.predict(*prompt) < 0.8 * step_time(TRUE, *prompt)
        if number >= 2000 and number % 50 == 0:
            model.observe(prompt, step_time(TRUE, *prompt))
    assert model.predict(*prompt) == pytest.approx(step_time(TRUE, *prompt), rel=0.03)


def test_a_hiccup_hardly_moves_the_fit() -> None:
    """A step that takes a hundred times as long changes predictions by less than 2 %."""
    model, noise = StepTimeModel(TRUE), random.Random(8)
    for features in steps(10, 1000):
        model.observe(features, step_time(TRUE, *features) * noise.lognormvariate(0, 0.02))
    probe = Features(300, 256 * 500.0, 20_000, 45)
    before = model.predict(*probe)
    model.observe(probe, before * 100)
    assert model.predict(*probe) == pytest.approx(before, rel=0.02)


def test_a_lasting_change_is_followed() -> None:
    """When the device becomes half as fast, the mean error is below 5 % again within 1,000 steps."""
    model = StepTimeModel(TRUE)
    for features in steps(11, 1000):
        model.observe(features, step_time(TRUE, *features))
    slow = StepTimeCoefficients(*(2 * getattr(TRUE, name) for name in TRUE.__struct_fields__))
    for features in steps(12, 1000):
        model.observe(features, step_time(slow, *features))
    assert relative_error(model, slow, 9) < 0.05


def test_hours_of_decode_alone_do_not_unlearn_prompts() -> None:
    """Ten thousand steps without a prompt leave predictions for prompts as they were, within 10 %, and finite."""
    model, noise = StepTimeModel(TRUE), random.Random(13)
    for features in steps(14, 1000):
        model.observe(features, step_time(TRUE, *features) * noise.lognormvariate(0, 0.03))
    for _ in range(10_000):
        rows = noise.randint(1, 64)
        features = Features(rows, 0.0, rows * noise.randint(100, 2000), rows)
        model.observe(features, step_time(TRUE, *features) * noise.lognormvariate(0, 0.03))
    prompt = Features(1500, 1500 * 750.0, 0, 1)
    assert model.predict(*prompt) == pytest.approx(step_time(TRUE, *prompt), rel=0.1)


def test_coefficients_are_never_negative() -> None:
    """Times that no non-negative model explains do not make a coefficient negative."""
    model, noise = StepTimeModel(TRUE), random.Random(15)
    for features in steps(16, 1000):
        model.observe(features, 0.05 * noise.random() / features.rows)
        assert all(getattr(model.coefficients, name) >= 0 for name in TRUE.__struct_fields__)
        assert model.predict(*features) >= 0


@pytest.mark.parametrize("actual_s", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_are_none_are_ignored(actual_s: float) -> None:
    """A step that was refused or skipped teaches nothing."""
    model = StepTimeModel(TRUE)
    model.observe(Features(1, 0.0, 100, 1), actual_s)
    assert (model.observed, model.coefficients) == (0, TRUE)


def test_a_seed_without_time_is_refused() -> None:
    """A model that predicts zero could never be refitted on relative error."""
    with pytest.raises(ValueError, match="must be positive"):
        StepTimeModel(StepTimeCoefficients(0.0, 0.0, 0.0))
