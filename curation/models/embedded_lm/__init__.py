"""A small GPT-2 of English captions and definitions, computed by numpy: any worker can measure perplexity with it.

The folder is an ordinary transformers folder (config.json, model.safetensors, tokenizer.json); docs/models.md says what
it learnt from.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tokenizers

FOLDER = Path(__file__).parent
MAX_TOKENS = 128
_HEADS = 4
_LAYERS = 3


def negative_log_likelihood(texts: Sequence[str]) -> tuple[float, int]:
    """Sum over all predicted tokens in nats, and their number; perplexity is exp(sum / number).

    Each text stands alone between two end marks, of which the first is given; case does not count; what is beyond
    128 tokens is left out.
    """
    weights = _weights()
    total, count = 0.0, 0
    for encoded in _tokenizer().encode_batch(list(texts)):
        ids = np.array(encoded.ids[:MAX_TOKENS])
        scores = logits(ids[:-1], weights)
        scores -= scores.max(axis=1, keepdims=True)
        total += float((np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(ids) - 1), ids[1:]]).sum())
        count += len(ids) - 1
    return total, count


def logits(ids: np.ndarray, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """Scores of each next token, float32 (n, vocabulary), by GPT-2's equations (Radford et al. 2019).

    ids  int64 (n,), n at most 128
    """
    n = len(ids)
    x = weights["wte.weight"][ids] + weights["wpe.weight"][:n]
    ahead = np.triu(np.full((n, n), -np.inf, np.float32), 1)
    for layer in range(_LAYERS):
        w = {name: weights[f"h.{layer}.{name}"] for name in _BLOCK}
        h = _normed(x, w["ln_1.weight"], w["ln_1.bias"]) @ w["attn.c_attn.weight"] + w["attn.c_attn.bias"]
        q, k, v = h.reshape(n, 3, _HEADS, -1).transpose(1, 2, 0, 3)  # each (heads, n, width of a head)
        at = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(q.shape[2])) + ahead
        at = np.exp(at - at.max(axis=2, keepdims=True))
        seen = (at / at.sum(axis=2, keepdims=True)) @ v
        x = x + seen.transpose(1, 0, 2).reshape(n, -1) @ w["attn.c_proj.weight"] + w["attn.c_proj.bias"]
        h = _normed(x, w["ln_2.weight"], w["ln_2.bias"]) @ w["mlp.c_fc.weight"] + w["mlp.c_fc.bias"]
        h *= 0.5 * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (h + np.float32(0.044715) * h**3)))
        x = x + h @ w["mlp.c_proj.weight"] + w["mlp.c_proj.bias"]
    scores: np.ndarray = _normed(x, weights["ln_f.weight"], weights["ln_f.bias"]) @ weights["wte.weight"].T
    return scores


_BLOCK = tuple(
    f"{layer}.{kind}"
    for layer in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for kind in ("weight", "bias")
)


def _normed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=1, keepdims=True)
    scaled: np.ndarray = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + np.float32(1e-5)) * weight + bias
    return scaled


@lru_cache(maxsize=1)
def _tokenizer() -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@lru_cache(maxsize=1)
def _weights() -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    stored = load_file(FOLDER / "model.safetensors")
    return {name.removeprefix("transformer."): value.astype(np.float32) for name, value in stored.items()}
