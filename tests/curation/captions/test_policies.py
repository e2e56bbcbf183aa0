from itertools import product

import pytest

from curation.captions.policies import Policy, choose, draws_synthetic

ALT, MADE = ("alt", "text"), ("made", "synthetic")
LOW, HIGH, HIGHER = 0.2, 0.8, 0.9  # the threshold is 0.8: equality meets it
# rows: score of the original; columns: no synthetic, synthetic at LOW, HIGH, HIGHER
TABLES: dict[Policy, dict[float, list[list[tuple[str, str]]]]] = {
    "keep_text": {LOW: [[ALT]] * 4, HIGH: [[ALT]] * 4, HIGHER: [[ALT]] * 4},
    "prefer_synthetic": {
        LOW: [[], [], [MADE], [MADE]],
        HIGH: [[ALT], [ALT], [ALT], [MADE]],
        HIGHER: [[ALT], [ALT], [ALT], [ALT]],
    },
    "best_above_threshold": {
        LOW: [[], [], [MADE], [MADE]],
        HIGH: [[ALT], [ALT], [ALT], [MADE]],
        HIGHER: [[ALT], [ALT], [ALT], [ALT]],
    },
    "both_above_threshold": {
        LOW: [[], [], [MADE], [MADE]],
        HIGH: [[ALT], [ALT], [ALT, MADE], [ALT, MADE]],
        HIGHER: [[ALT], [ALT], [ALT, MADE], [ALT, MADE]],
    },
    "best_of_n": {score: [[], [MADE], [MADE], [MADE]] for score in (LOW, HIGH, HIGHER)},
}


@pytest.mark.parametrize("policy", TABLES)
def test_the_truth_table_of(policy: Policy) -> None:
    for score, column in product((LOW, HIGH, HIGHER), range(4)):
        made = (None, LOW, HIGH, HIGHER)[column]
        chosen = choose(policy, 0.8, "alt", None if made is None else "made", score, made)
        assert chosen == TABLES[policy][score][column], (policy, score, made)


def test_preferring_the_synthetic_asks_for_no_threshold_and_the_best_does() -> None:
    assert choose("prefer_synthetic", 0.8, "alt", "made", 0.1, 0.2) == [MADE]
    assert choose("best_above_threshold", 0.8, "alt", "made", 0.1, 0.2) == []


@pytest.mark.parametrize(
    ("made", "drawn", "chosen"), [("made", True, MADE), ("made", False, ALT), (None, True, ALT), (None, False, ALT)]
)
def test_mix_takes_what_is_drawn_whatever_the_scores(made: str | None, drawn: bool, chosen: tuple[str, str]) -> None:
    for score in (LOW, HIGHER):
        assert choose("mix", 0.8, "alt", made, score, None if made is None else LOW, drawn=drawn) == [chosen]


def test_the_same_words_are_one_pair() -> None:
    assert choose("both_above_threshold", 0.5, "alt", "alt", 0.9, 0.9) == [ALT]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_samples_is_drawn_the_same_each_time(share: float) -> None:
    ids = [f"{number:032x}" for number in range(4000)]
    drawn = [draws_synthetic(sample, share, seed=1) for sample in ids]
    assert drawn == [draws_synthetic(sample, share, seed=1) for sample in ids]
    assert sum(drawn) / 4000 == pytest.approx(share, abs=0.025)  # 3 standard deviations are 0.022
    assert (drawn != [draws_synthetic(sample, share, seed=2) for sample in ids]) == (0 < share < 1)
