"""Image-to-text models of two layers with random weights, saved as a hub repository holds them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "dog", "runs", "red", "ball", "snow"]
SPECIAL = ["<image>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
VOCABULARY = [*WORDS, "USER", "ASSISTANT", ":", "\n", *SPECIAL]
_SIZE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_BLIP_TEXT = {"vocab_size": len(WORDS), "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
_WORD_IDS = {"vocab_size": len(VOCABULARY), "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
_LLAMA = {
    **(_SIZE | _WORD_IDS),
    **{"model_type": "llama", "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.5},
}
_TOWER = {**_SIZE, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, "projection_dim": 16}
_PIXELS = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
_VIEW = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
_QWEN_TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT :{% endif %}"
)


def save_tiny_blip(folder: Path, seed: int = 0, kind: str = "BlipForConditionalGeneration") -> Path:
    """A BLIP captioner, or with another class of the family a filter."""
    import transformers

    vision = {"image_size": 32, "patch_size": 16, "initializer_range": 0.5}
    config = transformers.BlipConfig(
        text_config=_BLIP_TEXT | _SIZE, vision_config=vision | _SIZE, image_text_hidden_size=16
    )
    _save(kind, config, folder, seed)
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    pixels = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(pixels, tokenizer).save_pretrained(folder)
    return folder


def save_tiny_itm(folder: Path, seed: int = 1) -> Path:
    """A BLIP filter."""
    return save_tiny_blip(folder, seed, "BlipForImageTextRetrieval")


def save_tiny_llava(folder: Path) -> Path:
    """LLaVA-1.5: one view, picture tokens within the prompt, no chat template."""
    import transformers

    config = transformers.LlavaConfig(
        vision_config=_TOWER, text_config=_LLAMA, image_token_id=VOCABULARY.index("<image>"), image_seq_length=4
    )
    _save("LlavaForConditionalGeneration", config, folder)
    pixels = transformers.CLIPImageProcessor(**_PIXELS)
    transformers.LlavaProcessor(pixels, _tokenizer(), **_VIEW).save_pretrained(folder)
    return folder


def save_tiny_llava_next(folder: Path, context: int = 4096) -> Path:
    """LLaVA-NeXT: its processor cuts AnyRes tiles of 28 px, 4 tokens each."""
    import transformers

    config = transformers.LlavaNextConfig(
        vision_config=_TOWER,
        text_config=_LLAMA | {"max_position_embeddings": context},
        image_token_id=VOCABULARY.index("<image>"),
        image_grid_pinpoints=PINPOINTS,
    )
    _save("LlavaNextForConditionalGeneration", config, folder)
    pixels = transformers.LlavaNextImageProcessor(**_PIXELS, image_grid_pinpoints=PINPOINTS)
    transformers.LlavaNextProcessor(pixels, _tokenizer(), **_VIEW).save_pretrained(folder)
    return folder


def save_tiny_blip2(folder: Path) -> Path:
    """BLIP-2: a Q-Former before an OPT."""
    import transformers

    vision = {**_SIZE, "image_size": 28, "patch_size": 14}
    opt: dict[str, Any] = {**_WORD_IDS, "model_type": "opt", "hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 2}
    config = transformers.Blip2Config(
        vision_config=vision,
        qformer_config={**_SIZE, "vocab_size": len(VOCABULARY), "encoder_hidden_size": 32},
        text_config=opt | {"num_attention_heads": 2, "max_position_embeddings": 128, "word_embed_proj_dim": 32},
        num_query_tokens=4,
        image_token_index=VOCABULARY.index("<image>"),
    )
    _save("Blip2ForConditionalGeneration", config, folder)
    pixels = transformers.BlipImageProcessor(size={"height": 28, "width": 28})
    transformers.Blip2Processor(pixels, _tokenizer(), num_query_tokens=4).save_pretrained(folder)
    return folder


def save_tiny_qwen2_vl(folder: Path) -> Path:
    """Qwen2-VL: the picture at its own size, a chat template."""
    import transformers

    text = {**_SIZE, **_WORD_IDS, "num_key_value_heads": 2, "initializer_range": 0.5}
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "patch_size": 14, "mlp_ratio": 1}
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    config = transformers.Qwen2VLConfig(
        text_config=text | {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
        vision_config=vision,
        **{key: VOCABULARY.index(f"<|{name}|>") for key, name in names.items()},
    )
    _save("Qwen2VLForConditionalGeneration", config, folder)
    tokenizer = _tokenizer()
    tokenizer.image_token, tokenizer.video_token = "<|image_pad|>", "<|video_pad|>"
    pixels = transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    transformers.Qwen2VLProcessor(
        pixels, tokenizer, transformers.Qwen2VLVideoProcessor(), chat_template=_QWEN_TEMPLATE
    ).save_pretrained(folder)
    return folder


SAVERS: dict[str, Callable[[Path], Path]] = {
    "llava": save_tiny_llava,
    "llava-next": save_tiny_llava_next,
    "blip-2": save_tiny_blip2,
    "qwen2-vl": save_tiny_qwen2_vl,
}


def _save(kind: str, config: Any, folder: Path, seed: int = 0) -> None:
    """The same weights wherever it is called: what a model says must not hang on the tests before."""
    import torch
    import transformers

    torch.manual_seed(seed)
    getattr(transformers, kind)(config).save_pretrained(folder)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **named)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    return tokenizer
