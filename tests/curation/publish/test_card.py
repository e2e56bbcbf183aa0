import pytest

from curation.gates import Gate
from curation.publish.card import render_card, spelt
from curation.publish.quality import Quality, merged
from curation.recipe import load_recipe
from curation.reports.funnel import Funnel, StageCounts


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({"column": "min_side", "at_least": 64}, "at least 64"),
        ({"column": "aspect", "at_most": 3.0}, "at most 3"),
        (
            {"column": "similarity", "by": "partition", "at_least": {"en": 0.28, "multi": 0.26}},
            "at least 0.28 where partition is en; at least 0.26 where partition is multi",
        ),
        ({"column": "duplicate_kind", "none_of": ["sha256"]}, "none of sha256"),
        ({"column": "known_hash", "one_of": []}, "no value"),
        ({"column": "page_opt_out", "equals": False}, "false"),
    ],
)
def test_gates_in_words(gate: dict, words: str) -> None:
    assert spelt(Gate.model_validate(gate)) == words


def test_names_from_the_web_are_escaped() -> None:
    quality = Quality()
    quality.add({"url": "https://a.test/", "text": "x", "language": "<img src=x onerror=alert(1)>"})
    stages = [StageCounts(name) for name in load_recipe("demo").stage_names]
    counts = {"samples": 4, "kept": 1}
    stages[0].rows_in, stages[0].seconds, stages[0].bytes = 4, 10.0, 2000
    stages[0].reasons["url_blocked"] = 2
    manifest = {
        "version": "<b>",
        "created_at": "now",
        "parent": "<p>",
        "target": [{"name": "<goal>", "asks": "<a>", "found": 1, "short": 2, "told": "<b>1</b>"}],
        "checks": [{"name": "drift", "passed": False, "reason": "<em>because"}],
        "counts": {"tombstone": 3},
        "domains": {"<host>": [4, 1]},
        "funnels": {"<dump>": counts | {"seconds": 6.0, "bytes": 9000}, "of an older version": counts},
    }
    funnel = Funnel("demo", "<i>dump", stages, {0: ""})
    card = render_card(load_recipe("demo"), manifest, funnel, merged([quality.to_json()]), {"similarity": 0.3})
    assert "<img" not in card
    assert "&lt;img src=x onerror=alert(1)&gt;" in card
    assert "&lt;i&gt;dump" in card
    assert "<svg" in card
    assert "&lt;em&gt;because" in card
    assert "Held:" in card
    assert "3 samples that every gate let through were taken down" in card
    assert "&lt;host&gt;" in card
    assert (
        '<td>&lt;dump&gt;<td class="n">4<td class="n">1<td class="n">25.00 %<td class="n">6<td class="n">9.0 kB</tr>'
        in card
    )
    assert '<td>&lt;host&gt;<td class="n">4<td class="n">1<td class="n">25.0 %<td class="n">10</tr>' in card
    assert f'<td>{stages[0].stage}<td class="n">50.0 %<td class="n">10<td class="n">2.0 kB</tr>' in card
    assert "Against &lt;p&gt;" in card
    assert "<td>&lt;goal&gt;<td>&lt;a&gt;<td>missed" in card
    assert not {"<b>", "<em>", "<host>", "<dump>", "<p>because", "<goal>"} & set(card.split())
