"""Addresses made of names."""

from __future__ import annotations

from actors.addresses import instance_of, scheduler_of


def test_a_models_name_is_one_token_of_an_address() -> None:
    """Dots, slashes and spaces of a name do not split the subject, and what is allowed stays as it is."""
    assert scheduler_of("meta/Llama-3.1 8B") == "scheduler.meta_Llama-3_1_8B"
    assert instance_of("headgate-demo") == "headgate-demo"
