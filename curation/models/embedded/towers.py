"""The two towers of the embedded model, as parts that open_clip puts together: a timm model and a pooler.

Backbones are frozen; what was trained are the two heads. A head is an ensemble: each member maps the features to its
own unit vector, and the concatenation (scaled to norm 1) makes a cosine the mean of the members' cosines.
"""

from collections.abc import Iterable
from typing import ClassVar

import timm
import torch
from open_clip.hf_model import register_pooler
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

MEMBERS, HIDDEN, MEMBER_DIM = 3, 192, 128
DIM = MEMBERS * MEMBER_DIM  # equals the width of both text encoders, so open_clip adds no projection of its own
LITE_WIDTH = 1280  # channels before the classifier, the same in Lite0, Lite1 and Lite2


class HeadEnsemble(nn.Module):
    """Map features to MEMBERS unit vectors, put side by side and scaled to norm 1.

    x        float (n, in_dim)        returns  float (n, MEMBERS * MEMBER_DIM)
    """

    def __init__(self, in_dim: int, hidden: int = HIDDEN, members: int = MEMBERS, dim: int = MEMBER_DIM) -> None:
        super().__init__()
        self.shape = (members, hidden, dim)
        self.into = nn.Linear(in_dim, members * hidden)
        self.out = nn.Parameter(torch.empty(members, hidden, dim))
        nn.init.normal_(self.out, std=hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Embed; rows have norm 1."""
        members, hidden, _ = self.shape
        h = F.gelu(self.into(x)).view(len(x), members, hidden)
        vectors = F.normalize(torch.einsum("nmh,mhd->nmd", h, self.out), dim=-1)
        beside: Tensor = vectors.flatten(1) / members**0.5
        return beside


class LiteTowers(nn.Module):
    """Three EfficientNet-Lite networks that look at the same pixels, and the head on what they see.

    Features: the mean over places of each network's last map. ImageNet probabilities times the vectors of the class
    names (ConSE) were tried beside them and added nothing (docs/models.md).
    """

    def __init__(self, num_classes: int = DIM) -> None:
        super().__init__()
        assert num_classes == DIM
        self.towers = nn.ModuleList(timm.create_model(f"tf_efficientnet_lite{i}") for i in range(3))
        self.head = HeadEnsemble(3 * LITE_WIDTH)
        self.num_classes = num_classes

    def features(self, pixels: Tensor) -> Tensor:
        """What the head reads: float (n, 3 * 1280) from normalised pixels (n, 3, h, w)."""
        towers: Iterable[timm.models.EfficientNet] = self.towers
        return torch.cat([tower.forward_features(pixels).mean((2, 3)) for tower in towers], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed; rows have norm 1."""
        vectors: Tensor = self.head(self.features(pixels))
        return vectors


def curation_lite_towers(pretrained: bool = False, num_classes: int = DIM, **_: object) -> LiteTowers:
    """Build the image tower under the name that open_clip's configuration carries; weights come with the checkpoint."""
    if pretrained:
        raise ValueError("curation_lite_towers has no weights of its own: load it through curation.models.clip")
    return LiteTowers(num_classes)


register_model(curation_lite_towers)


class _LayersPooler(nn.Module):
    """Mean over tokens of chosen layers, side by side, then the head."""

    layers: ClassVar[tuple[int, ...]]
    width: ClassVar[int] = 384

    def __init__(self) -> None:
        super().__init__()
        self.head = HeadEnsemble(len(self.layers) * self.width)

    def features(self, output: BaseModelOutput, mask: Tensor) -> Tensor:
        """What the head reads: float (n, layers * 384)."""
        assert output.hidden_states is not None
        keep = mask.unsqueeze(-1).to(output.hidden_states[0].dtype)
        total = keep.sum(1).clamp(min=1)
        return torch.cat([(output.hidden_states[i] * keep).sum(1) / total for i in self.layers], dim=1)

    def forward(self, output: BaseModelOutput, mask: Tensor) -> Tensor:
        """Embed; rows have norm 1."""
        vectors: Tensor = self.head(self.features(output, mask))
        return vectors


@register_pooler
class CurationMinilmPooler(_LayersPooler):
    """Pooler on all-MiniLM-L6-v2: word embeddings and three of its layers."""

    layers = (0, 2, 4, 6)


@register_pooler
class CurationE5Pooler(_LayersPooler):
    """Pooler on multilingual-e5-small: word embeddings and three of its layers."""

    layers = (0, 4, 8, 12)
