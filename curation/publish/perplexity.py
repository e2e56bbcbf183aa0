"""How surprising captions are to a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from curation.errors import ConfigError
from curation.models import embedded_lm

EMBEDDED = "embedded"
_BATCH = 16
_MAX_TOKENS = 128


def negative_log_likelihood(texts: Sequence[str], model_name: str) -> tuple[float, int]:
    """Sum over all predicted tokens in nats, and their number; perplexity is exp(sum / number).

    Each text stands alone; its first token is given, not predicted, and what is beyond 128 tokens is left out. On the
    CPU, so that a task of any queue can measure it.

    model_name  "embedded", or a causal LM that transformers loads: a folder, or a name on its hub
    raises      ConfigError when it can't be loaded
    """
    if model_name == EMBEDDED:
        return embedded_lm.negative_log_likelihood(texts)
    import torch

    tokenizer, model = _loaded(model_name)
    total, count = 0.0, 0
    for start in range(0, len(texts), _BATCH):
        encoded = tokenizer(
            list(texts[start : start + _BATCH]),
            padding=True,
            truncation=True,
            max_length=_MAX_TOKENS,
            return_tensors="pt",
        )
        ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        if ids.shape[1] < 2:
            continue
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1].float()
        wanted = mask[:, 1:] & mask[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits[wanted], ids[:, 1:][wanted], reduction="sum")
        total += float(losses)
        count += int(wanted.sum())
    return total, count


@lru_cache(maxsize=1)
def _loaded(model_name: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as err:
        raise ConfigError("publish.perplexity_model: install curation[models]") from err
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name)
        model = AutoModelForCausalLM.from_pretrained(model_name, use_safetensors=True).eval()
    except (OSError, ValueError) as err:
        told = " ".join(str(err).split())[:200]
        raise ConfigError(f"publish.perplexity_model: {model_name} can't be loaded: {told}") from err
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer, model
