"""A mix of guests: one parser, one name, and who does what."""

import pytest

from analysis.plan.mix import MixError, guest_workloads, mix_text, parse_mix, taking_turns


def test_a_mix_is_read_and_named_by_the_alphabet() -> None:
    mix = parse_mix("random_fill=2, idle=1", "mix")
    assert mix == {"random_fill": 2, "idle": 1}
    assert mix_text(mix) == "idle=1,random_fill=2"
    assert mix_text({"idle": 3}) == "idle"


def test_a_mix_is_of_any_names_that_workloads_may_have() -> None:
    assert parse_mix("redis-7=2,zero_fill=1", "mix") == {"redis-7": 2, "zero_fill": 1}


@pytest.mark.parametrize(
    "words", ["", "idle", "idle=0", "idle=-1", "idle=1,idle=2", "idle=1,", "Idle=1", "7=1", "idle=1.5"]
)
def test_what_is_no_mix_is_one_sentence_with_the_callers_name(words: str) -> None:
    with pytest.raises(MixError, match=r"^--mix is '.*': allowed is each workload once .*\.$"):
        parse_mix(words, "--mix")


def test_guests_take_the_workloads_by_the_alphabet_in_the_order_of_their_names() -> None:
    guests = ["guest03", "guest01", "guest10", "guest02"]
    assert guest_workloads("random_fill=1,constant_fill=2,idle=1", guests) == {
        "guest01": "constant_fill",
        "guest02": "constant_fill",
        "guest03": "idle",
        "guest10": "random_fill",
    }
    assert guest_workloads("idle", guests) == dict.fromkeys(sorted(guests), "idle")


def test_guests_take_turns_by_their_shares_and_more_of_them_change_nothing_in_the_first() -> None:
    shares = {"idle": 2, "random_fill": 1, "constant_fill": 3}
    turns = taking_turns(shares, 60)
    assert turns[:6] == ["constant_fill", "idle", "constant_fill", "random_fill", "idle", "constant_fill"]
    assert all(taking_turns(shares, n) == turns[:n] for n in range(60))
    assert {name: turns.count(name) for name in shares} == {name: 10 * n for name, n in shares.items()}
    assert taking_turns({"idle": 1}, 3) == ["idle"] * 3


def test_of_shares_each_guest_has_its_workload_by_its_number() -> None:
    guests = [f"guest{number:02d}" for number in range(1, 102)]
    does = guest_workloads("idle=1,random_fill=1", guests, shares=True)
    assert [does[name] for name in guests] == ["idle", "random_fill"] * 50 + ["idle"]


@pytest.mark.parametrize("guests", [[], ["a"], ["a", "b", "c", "d"]])
def test_guests_that_are_not_those_of_the_mix_are_refused(guests: list[str]) -> None:
    with pytest.raises(
        MixError, match=rf"^workload idle=1,random_fill=2 has 3 guests: {len(guests)} are given"
    ):
        guest_workloads("idle=1,random_fill=2", guests)
