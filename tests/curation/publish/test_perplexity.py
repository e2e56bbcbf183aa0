import math
import random
from pathlib import Path

import numpy as np
import pytest

from curation.errors import ConfigError
from curation.models import embedded_lm
from curation.publish.perplexity import EMBEDDED, negative_log_likelihood
from curation.publish.quality import Quality, merged

WORDS = ["[UNK]", "[PAD]", "a", "cat", "on", "the", "table", "dog"]


@pytest.fixture(scope="module")
def uniform(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real GPT-2 of zero weights: every token is as likely as any other."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("uniform")
    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        folder
    )
    config = transformers.GPT2Config(vocab_size=len(WORDS), n_positions=128, n_embd=8, n_layer=1, n_head=1)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
    model.save_pretrained(folder)
    return str(folder)


def test_a_uniform_model_is_as_perplexed_as_it_has_words(uniform: str) -> None:
    texts = ["a cat on the table", "a dog", "cat", "", "a " * 500]
    total, count = negative_log_likelihood(texts, uniform)
    assert count == 4 + 1 + 0 + 0 + 127
    assert math.exp(total / count) == pytest.approx(len(WORDS), rel=1e-5)
    assert negative_log_likelihood(["cat", ""], uniform) == (0.0, 0)


def test_it_adds_up_over_shards_in_the_report(uniform: str) -> None:
    parts = []
    for text in ("a cat on the table", "a dog"):
        quality = Quality(uniform)
        quality.add({"url": "https://a.test/", "text": text})
        parts.append(quality.to_json())
    assert merged(parts)["perplexity"] == pytest.approx(len(WORDS), rel=1e-3)
    assert merged([Quality().to_json()])["perplexity"] is None


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"publish.perplexity_model: .*nothing can't be loaded"):
        negative_log_likelihood(["a cat"], str(tmp_path / "nothing"))


CAPTIONS = [
    "A brown dog runs through the shallow water at the beach.",
    "Two children are playing with a ball in the garden.",
    "The cat sleeps on a chair beside the window.",
    "A man in a red jacket climbs up a steep snowy mountain.",
    "A cup of coffee stands on a wooden table.",
    "Several people walk along the street in front of an old building.",
]


def test_the_embedded_model_computes_what_transformers_computes() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_lm.FOLDER)
    model = transformers.AutoModelForCausalLM.from_pretrained(embedded_lm.FOLDER, dtype=torch.float32)
    total = count = 0.0
    for text in [*CAPTIONS, "", "Ein Hund \x00 \U0001f415 狗", "a dog " * 200]:
        ids = tokenizer(text)["input_ids"][: embedded_lm.MAX_TOKENS]
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss
        total, count = total + float(loss) * (len(ids) - 1), count + len(ids) - 1
    ours = embedded_lm.negative_log_likelihood([*CAPTIONS, "", "Ein Hund \x00 \U0001f415 狗", "a dog " * 200])
    assert ours == (pytest.approx(total, rel=1e-4), count)


def test_captions_surprise_the_embedded_model_less_than_their_words_in_another_order() -> None:
    rng = random.Random(0)
    shuffled = [" ".join(rng.sample(text.split(), len(text.split()))) for text in CAPTIONS]
    fluent, wrong = (np.divide(*negative_log_likelihood(texts, EMBEDDED)) for texts in (CAPTIONS, shuffled))
    assert math.exp(fluent) < math.exp(wrong) / 3


def test_the_embedded_model_is_asked_about_english_alone() -> None:
    quality = Quality(EMBEDDED)
    rows = [{"url": "https://a.test/", "text": CAPTIONS[0], "language": "en"}]
    rows += [{"url": "https://a.test/", "text": "Ein Hund am Strand", "language": "de"}]
    quality.add_rows(rows)
    assert quality.to_json()["nll"] == [*negative_log_likelihood(CAPTIONS[:1], EMBEDDED)]
