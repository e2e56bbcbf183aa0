import math
from pathlib import Path

import pytest

from curation.errors import ConfigError
from curation.publish.perplexity import negative_log_likelihood
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
