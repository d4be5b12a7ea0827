"""Which cards fit: the shelf's search asks what a plan would say, for all cards at once."""

from __future__ import annotations

import workbench as wb
from workbench.planning.fits import fits_on
from workbench.planning.policy import rules


def test_what_fits_is_what_a_plan_says() -> None:
    shelf = wb.catalog("16GB-cuda+32GB-ram")
    good = rules().rank(rules().floor)
    judged = 0
    for card in list(shelf)[::4]:
        answer = shelf.fits(card)
        if card.remote is not None or answer is None:
            continue
        found = wb.plan(
            card, machine="16GB-cuda+32GB-ram", context=min(2048, card.context_length or 2048)
        )
        judged += 1
        if answer:
            assert found.fits, card.id
        elif found.fits:
            assert rules().rank(found.quantization) > good, card.id
    assert judged > 15


def test_a_larger_machine_fits_no_less() -> None:
    small, large = fits_on("8GB-cuda+16GB-ram"), fits_on("80GB-cuda+256GB-ram")
    cards = list(wb.catalog())
    fitting = {card.id for card in cards if small(card)}
    assert fitting <= {card.id for card in cards if large(card)}
    assert "kimi-k2-instruct" not in fitting
    assert {"tiny-chat", "qwen3-8b"} <= fitting
    assert len(fitting) < len([card for card in cards if large(card)])


def test_search_is_bound_to_it() -> None:
    found = {card.id for card in wb.catalog("8GB-cuda+8GB-ram").search("qwen2.5", fits=True)}
    assert "qwen2.5-7b-instruct" in found
    assert "qwen2.5-32b-instruct" not in found
    assert "tiny-chat" in {card.id for card in wb.catalog().search(fits=True)}
    remote = fits_on("8GB-cuda")(wb.catalog()["gemini-2.0-flash"])
    assert remote is True  # a service runs it
