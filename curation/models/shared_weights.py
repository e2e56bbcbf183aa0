"""Whether two models share weights: a filter that does passes what its own captioner makes up."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from curation.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_LEAST_ELEMENTS = 256  # norms and biases are ones and zeros in many a model
_MOST_SHARED = (
    0.5  # BLIP's two models that share all but attention and heads are far above, two models of their own at 0
)


def require_own_weights(captioner: PreTrainedModel, matcher: PreTrainedModel, names: tuple[str, str]) -> None:
    """Raises ConfigError when most of the matcher's text weights are the captioner's, byte for byte.

    A picture tower in common is allowed: BLIP-2 and the embedded models keep theirs frozen.

    names    of captioner and matcher, for the message
    source   Li et al. 2022 (BLIP), table 4: with shared parameters the filter rejects 8 % of the captions, else 25 %
    """
    wanted = _text_weights(matcher)
    shapes = {weight.shape for weight in wanted.values()}
    held = {_content(weight) for weight in _text_weights(captioner).values() if weight.shape in shapes}
    shared = sum(weight.numel() for weight in wanted.values() if _content(weight) in held)
    share = shared / max(1, sum(weight.numel() for weight in wanted.values()))
    if share > _MOST_SHARED:
        raise ConfigError(
            f"stages.caption: captioner {names[0]!r} and matcher {names[1]!r} share {share:.0%} of their text weights; "
            "a filter must not be its captioner's twin: fine-tune the two separately, or name another matcher"
        )


def _text_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {
        name: weight
        for name, weight in model.state_dict().items()
        if weight.is_floating_point() and weight.numel() >= _LEAST_ELEMENTS and "vision" not in name
    }


def _content(weight: torch.Tensor) -> bytes:
    return hashlib.blake2b(weight.detach().float().contiguous().cpu().numpy().data, digest_size=16).digest()
