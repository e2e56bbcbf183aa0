from hypothesis import given
from hypothesis import strategies as st

from curation.publish.instruct import Groups, instruct_record, is_pair
from curation.sources.conversations import MARK, MAX_CHARS, Conversation, turns_of


def row(number: int, text: str = "a cat", phash: int = 0, page: str | None = None) -> dict:
    return {
        "sample_id": f"{number:032x}", "key": f"{number:012d}", "dump": "d", "shard": 3, "image_format": "jpeg",
        "text": text, "phash": f"{phash:016x}", "page_url": page,
    }  # fmt: skip


@given(st.text(), st.integers(0, 99))
def test_one_mark_for_one_image_whatever_the_caption_says(text: str, seed: int) -> None:
    record = instruct_record(row(1, f"{text}<image>{text}<<image>image>"), seed)
    assert "".join(turn["value"] for turn in record["conversations"]).count(MARK) == 1
    assert record["image"] == "d-00003/000000000001.jpg"


def test_templates_are_drawn_by_seed_and_sample() -> None:
    def questions(seed: int) -> list[str]:
        return [instruct_record(row(number), seed)["conversations"][0]["value"] for number in range(300)]

    assert questions(0) == questions(0) != questions(1)
    assert len(set(questions(0))) == 12  # six templates, the image before or after
    long = instruct_record(row(1, "word " * 30), 0)["conversations"][0]["value"]
    assert long.replace(MARK, "").strip() not in {question.replace(MARK, "").strip() for question in questions(0)}


def test_groups_by_hand() -> None:
    groups = Groups(max_images=3, alike_bits=2, seed=0)
    far = 0xFF << 40
    for member in (
        row(0, "a", far << 8, "p"), row(1, "b", far << 16, "p"), row(2, "c", 0b0), row(3, "d", 0b11),
        row(4, "e", 0b1111), row(5, "f", far, "q"),
    ):  # fmt: skip
        groups.add(member)
    page, alike = groups.records()
    assert (page["group"], alike["group"]) == ("page", "alike")
    assert page["images"] == ["d-00003/000000000000.jpg", "d-00003/000000000001.jpg"]
    assert page["conversations"][1]["value"] == "1. a\n2. b"
    assert alike["conversations"][1]["value"] == "1. c\n2. d"  # e is as far from c as four bits
    assert all(r["conversations"][0]["value"].count(MARK) == len(r["images"]) for r in (page, alike))


def test_a_page_of_many_pictures_is_cut_and_one_left_over_stays_out() -> None:
    groups = Groups(max_images=3, alike_bits=1, seed=0)
    for number in range(7):
        groups.add(row(number, page="p", phash=0b11 << (2 * number)))
    assert [len(record["images"]) for record in groups.records()] == [3, 3]


TURNS = [
    {"from": "user", "value": "What is it?"}, {"from": "assistant", "value": "A <image> cat."},
    {"from": "human", "value": "Its colour?"}, {"from": "gpt", "value": "Grey."},
]  # fmt: skip


def test_an_annotated_conversation_goes_out_as_it_came() -> None:
    turns = turns_of(TURNS, 1)
    assert turns
    sample = row(1, "A cat. Grey.") | {"conversation": Conversation(turns, 4).to_json()}
    record = instruct_record(sample, 0)
    assert record["conversations"] == [
        {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Its colour?"}, {"from": "gpt", "value": "Grey."},
    ]  # fmt: skip
    recaptioned = sample | {"caption": "A tabby", "caption_source": "synthetic"}
    assert instruct_record(recaptioned, 0)["conversations"][-1]["value"] == "A tabby"


def test_a_record_of_several_pictures_goes_out_when_all_are_kept() -> None:
    turns = turns_of([{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "Both."}], 2)
    assert turns
    rows = [
        row(number, "Both.") | {"annotated_set": "s", "conversation": Conversation(turns, record, at, 2).to_json()}
        for number, (record, at) in enumerate([(8, 1), (9, 0), (8, 0)])
    ]
    assert not any(map(is_pair, rows))
    groups = Groups(max_images=4, alike_bits=1, seed=0)
    for one in rows:
        groups.add(one)
    (record,) = groups.records()
    assert record["images"] == ["d-00003/000000000002.jpg", "d-00003/000000000000.jpg"]
    assert (record["group"], record["conversations"]) == ("annotated", turns)


@given(
    st.one_of(
        st.lists(
            st.fixed_dictionaries(
                {"from": st.sampled_from(["human", "gpt", "system", 7]), "value": st.text() | st.sampled_from([MARK])}
            ),
            max_size=6,
        ),
        st.just(TURNS * 9),
        st.none(),
    ),
    st.integers(1, 3),
)
def test_turns_are_well_formed_or_none(raw: object, pictures: int) -> None:
    turns = turns_of(raw, pictures)
    if turns is not None:
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert sum(turn["value"].count(MARK) for turn in turns) == pictures
        assert not any(MARK in turn["value"] for turn in turns[1::2])
        assert all(turn["value"].strip() for turn in turns)
        assert turns_of(turns, pictures) == turns


def test_a_book_is_no_conversation() -> None:
    assert turns_of([TURNS[0], {"from": "gpt", "value": "x" * MAX_CHARS}], 1) is None
