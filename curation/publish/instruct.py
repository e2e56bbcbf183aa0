"""Training records in LLaVA's form: conversations built from captions by templates, one image or several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from curation.joins.hamming import pairs_within
from curation.publish.writers import SUFFIXES, caption_of
from curation.receipt import digest
from curation.sources.conversations import MARK, Conversation, parse_conversation

_BRIEF = (
    "What does this picture show?",
    "Give a short caption for this picture.",
    "Say in a sentence what can be seen here.",
    "Write the alt text of this image.",
    "Sum up this image in a few words.",
    "How would you caption this image?",
)
_DETAILED = (
    "Describe this picture in detail.",
    "Tell me everything that can be seen in this image.",
    "Describe the image for somebody who can't see it.",
    "What is in this picture? Be thorough.",
    "Give a full description of this image.",
)
_SEVERAL = (
    "What does each of these {n} pictures show?",
    "Give a caption for each of the {n} images, in their order.",
    "Caption these {n} pictures one by one.",
)
_DETAILED_WORDS = 25  # from here on an answer is a description rather than a caption


def image_path(row: dict[str, Any]) -> str:
    """Path of a sample's picture once the tar of its shard is unpacked into the folder of the tar's name."""
    suffix = SUFFIXES.get(row["image_format"], row["image_format"])
    return f"{row['dump']}-{row['shard']:05d}/{row['key']}.{suffix}"


def pretrain_record(row: dict[str, Any]) -> dict[str, Any]:
    """Image and caption of a sample."""
    return {"image": image_path(row), "caption": caption_of(row)}


def is_pair(row: dict[str, Any]) -> bool:
    """Whether the text is about this picture alone, not about all pictures of an annotated record."""
    told = _conversation(row)
    return told is None or told.pictures == 1


def instruct_record(row: dict[str, Any], seed: int) -> dict[str, Any]:
    """The annotated conversation, or one question and its answer, the caption.

    The question's template is drawn by seed and sample, the same in every run; a template asks, too, where the caption
    policy took another text than the annotated one.
    """
    told = _conversation(row)
    turns = told.turns if told else _asked(row, seed)
    identity = "_".join([row["sample_id"], *row["key"].split("_")[1:]])  # of a second pair of the picture: ..._2
    return {"id": identity, "image": image_path(row), "conversations": turns}


def _conversation(row: dict[str, Any]) -> Conversation | None:
    return None if row.get("caption_source") == "synthetic" else parse_conversation(row.get("conversation"))


def _asked(row: dict[str, Any], seed: int) -> list[dict[str, str]]:
    answer = _unmarked(caption_of(row))
    templates = _DETAILED if len(answer.split()) >= _DETAILED_WORDS else _BRIEF
    question = _draw(templates, seed, row["sample_id"])
    # the picture before or after the question, as likely
    human = f"{MARK}\n{question}" if _draw("ab", seed, row["sample_id"], "side") == "a" else f"{question}\n{MARK}"
    return [{"from": "human", "value": human}, {"from": "gpt", "value": answer}]


class Groups:
    """Collects what multi-image records need of a shard's samples: about 300 bytes a sample, no picture.

    Annotated records of several pictures go out as they came, when all their pictures are kept.
    """

    def __init__(self, max_images: int, alike_bits: int, seed: int) -> None:
        self._max_images, self._alike_bits, self._seed = max_images, alike_bits, seed
        self._members: list[tuple[str, str, str]] = []  # sample_id, path, caption
        self._pages: dict[str, list[int]] = {}
        self._hashes: list[int] = []
        self._annotated: dict[tuple[str, int], tuple[Conversation, dict[int, tuple[str, str]]]] = {}

    def add(self, row: dict[str, Any]) -> None:
        """Take a published sample."""
        if not is_pair(row) and (told := _conversation(row)):
            _, found = self._annotated.setdefault((row["annotated_set"], told.record), (told, {}))
            found[told.picture] = (row["sample_id"], image_path(row))
            return
        if page := row.get("page_url"):
            self._pages.setdefault(page, []).append(len(self._members))
        self._members.append((row["sample_id"], image_path(row), _unmarked(caption_of(row))))
        self._hashes.append(int(row["phash"], 16))

    def records(self) -> Iterator[dict[str, Any]]:
        """Annotated records, then pictures of one page in their order there, then pictures that look alike.

        A sample is once in each.
        """
        for told, found in self._annotated.values():
            if len(found) == told.pictures:
                ids, paths = zip(*(found[at] for at in range(told.pictures)), strict=True)
                yield {"id": digest("annotated", *ids), "images": list(paths), "group": "annotated",
                       "conversations": told.turns}  # fmt: skip
        for members in self._pages.values():
            yield from self._cut("page", members)
        taken = np.zeros(len(self._hashes), bool)
        left, right = pairs_within(np.array(self._hashes, np.uint64), self._alike_bits)
        alike: dict[int, list[int]] = {}
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            if not taken[b] and (a in alike or not taken[a]) and len(alike.get(a, ())) + 1 < self._max_images:
                alike.setdefault(a, []).append(b)
                taken[a] = taken[b] = True
        for first, others in alike.items():
            yield from self._cut("alike", [first, *others])

    def _cut(self, kind: str, members: list[int]) -> Iterator[dict[str, Any]]:
        for start in range(0, len(members), self._max_images):
            if len(chosen := members[start : start + self._max_images]) > 1:
                yield self._record(kind, [self._members[at] for at in chosen])

    def _record(self, kind: str, members: list[tuple[str, str, str]]) -> dict[str, Any]:
        ids, paths, captions = zip(*members, strict=True)
        identity = digest(kind, *ids)
        question = _draw(_SEVERAL, self._seed, identity).format(n=len(paths))
        answer = "\n".join(f"{number}. {caption}" for number, caption in enumerate(captions, 1))
        return {
            "id": identity,
            "images": list(paths),
            "group": kind,
            "conversations": [
                {"from": "human", "value": f"{MARK}\n" * len(paths) + question},
                {"from": "gpt", "value": answer},
            ],
        }


def _unmarked(text: str) -> str:
    """A stranger's text that holds the mark would count as a picture that is not there."""
    return text.replace(MARK, "image")


def _draw(choices: Any, seed: int, *identity: str) -> str:
    drawn: str = choices[int(digest(str(seed), *identity)[:16], 16) % len(choices)]
    return drawn
