import numpy as np
import pyarrow as pa

from curation.reports.duplicates import _told
from curation.reports.spread import OTHERS, Values


def test_shares_of_each_language_on_the_kept_side_of_the_line() -> None:
    value = np.array([0.1, 0.2, 0.3, 0.2, 0.4], np.float32)
    language = np.array([0, 0, 0, 1, 1], np.int16)
    shard, row = np.array([0, 0, 0, 1, 1], np.int32), np.array([5, 6, 7, 0, 1], np.int32)
    values = Values("similarity", value, language, shard, row, ["en", "de"], 2)
    told = values.to_json(0.2)  # equality stays, as the gates have it
    assert (told["samples"], told["kept"], sum(told["counts"])) == (5, 4, 5)
    assert told["languages"] == [
        {"language": "en", "samples": 3, "kept": 2},
        {"language": "de", "samples": 2, "kept": 2},
    ]
    assert values.to_json(0.2, above=False)["kept"] == 3
    assert values.beside(0.21) == ([(0, 6), (0, 5)], [(0, 7)])  # of the shard of the nearest
    nothing = values._replace(value=value[:0], language=language[:0], shard=shard[:0], row=row[:0])
    assert nothing.beside(0.2) == ([], [])
    assert nothing.to_json(0.2)["samples"] == 0
    many = values._replace(language=np.zeros(5, np.int16), languages=[str(n) for n in range(20)])
    assert many.to_json(0)["languages"][-1] == {"language": OTHERS, "samples": 0, "kept": 0}


def test_the_largest_group_and_its_kept_one_come_first() -> None:
    rows = [
        ("b", "sha256", "a", 3, 0),
        ("a", None, "a", 3, 4),
        ("c", "phash", "a", 3, 2),
        ("e", "phash", "earlier", 5, 7),
    ]
    names = ["sample_id", "duplicate_kind", "group_id", "group_size", "row"]
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    found = _told(table.append_column("shard", pa.array([9] * 4)), 1, 100)
    assert found.duplicates == {"sha256": 1, "phash": 2}
    assert [(group.group_id, group.size, group.kept_elsewhere) for group in found.groups] == [
        ("earlier", 5, True),
        ("a", 3, False),
    ]
    assert [(one.row, one.kind) for one in found.groups[1].members] == [(4, ""), (0, "sha256"), (2, "phash")]
    assert _told(None, 1, 0).groups == []


def test_of_a_large_group_the_kept_one_and_the_first_by_shard_and_row_are_told() -> None:
    kept, members = 17, 40
    table = pa.table(
        {
            "sample_id": [str(n) for n in range(members)],
            "duplicate_kind": [None if n == kept else "phash" for n in range(members)],
            "group_id": [str(kept)] * members,
            "group_size": [members] * members,
            "row": [members - n for n in range(members)],
            "shard": [n % 2 for n in range(members)],
        }
    )
    (group,) = _told(table, 2, members).groups
    by_place = sorted((n for n in range(members) if n != kept), key=lambda n: (n % 2, members - n))
    assert [one.sample_id for one in group.members] == [str(n) for n in [kept, *by_place[:11]]]
    assert (group.size, group.kept_elsewhere) == (members, False)
