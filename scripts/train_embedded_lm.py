"""Train and measure the embedded language model: what tells the perplexity of English captions without a download.

    python scripts/train_embedded_lm.py PICTURES WORDNET [--measure]

reads    PICTURES/captions.jsonl (split "train" or "dev", en: captions) and WORDNET/data.* (glosses of WordNet 3.0,
         Debian's package wordnet-base)
writes   curation/models/embedded_lm: a folder of transformers, float16 safetensors
splits   captions of 500 train pictures and every 50th gloss choose the epoch; the other captions and every second gloss
         are learnt; "dev" is measured once, at the end
"""

import argparse
import copy
import itertools
import json
import math
import random
import re
import time
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from curation.models.embedded_lm import FOLDER
from curation.publish.perplexity import negative_log_likelihood

SEED = 0
END = "<|endoftext|>"
BATCH_TOKENS = 4096


def captions(pictures: Path, split: str) -> list[list[str]]:
    """Captions of each picture of a split."""
    rows = map(json.loads, (pictures / "captions.jsonl").read_text(encoding="utf-8").splitlines())
    return [row["en"] for row in rows if row["split"] == split]


def glosses(wordnet: Path) -> list[str]:
    """Definitions and example sentences of all synsets."""
    texts = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (wordnet / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if not line.startswith("  "):  # the licence stands before the entries
                gloss = line.partition(" | ")[2]
                texts += re.findall(r'"([^"]{12,})"', gloss)
                texts.append(re.sub(r'"[^"]*"?', "", gloss).strip("; "))
    return [text for text in texts if len(text.split()) > 2]


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 6,000 entries on lower-cased text: any text has tokens."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=6000, special_tokens=[END], initial_alphabet=alphabet)
    )
    made.post_processor = processors.TemplateProcessing(single=f"{END} $A {END}", special_tokens=[(END, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END, model_max_length=128)


def batches(encoded: list[list[int]], rng: random.Random | None) -> list[torch.Tensor]:
    """Batches of about 4,096 tokens, texts of like length together, padded by -1; shuffled when there is an rng."""
    order = sorted(range(len(encoded)), key=lambda at: (len(encoded[at]), rng.random() if rng else 0))
    made = []
    while order:
        size = max(1, BATCH_TOKENS // len(encoded[order[-1]]))
        chosen, order = order[-size:], order[:-size]
        width = max(len(encoded[at]) for at in chosen)
        made.append(torch.tensor([encoded[at] + [-1] * (width - len(encoded[at])) for at in chosen]))
    if rng:
        rng.shuffle(made)
    return made


def loss(model: GPT2LMHeadModel, ids: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of all tokens but each text's first, in nats."""
    logits = model(input_ids=ids.clamp(min=0), attention_mask=(ids >= 0).long()).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=-1)


def train(learnt: list[str], choosing: list[str], epochs: int) -> None:
    """The epoch with the least loss on `choosing` stays."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    tokenizer = tokenizer_of(learnt)
    encoded, held = (tokenizer(texts, truncation=True, max_length=128)["input_ids"] for texts in (learnt, choosing))
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=128,
        n_layer=3,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1),
    )
    model = GPT2LMHeadModel(config)
    print(f"{sum(len(ids) for ids in encoded)} tokens, {model.num_parameters()} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.1, betas=(0.9, 0.98))
    steps = epochs * len(batches(encoded, None))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.05)
    best = math.inf
    for epoch in range(epochs):
        start = time.perf_counter()
        model.train()
        for ids in batches(encoded, rng):
            optimizer.zero_grad()
            loss(model, ids).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            parts = [(float(loss(model, ids)), int((ids[:, 1:] >= 0).sum())) for ids in batches(held, None)]
        nats = sum(mean * n for mean, n in parts) / sum(n for _, n in parts)
        print(
            f"epoch {epoch}: held-out perplexity {math.exp(nats):.2f}, {time.perf_counter() - start:.0f} s", flush=True
        )
        if nats < best:
            best = nats
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.save_pretrained(FOLDER)
            copy.deepcopy(model).half().save_pretrained(FOLDER)


def measure(dev: list[list[str]]) -> None:
    """Perplexity of captions never seen, and how well it tells them from the same words in another order."""
    rng = random.Random(SEED)
    texts = list(itertools.chain.from_iterable(dev))
    shuffled = [" ".join(rng.sample(words, len(words))) for words in (text.split() for text in texts)]
    nats, count = negative_log_likelihood(texts, "embedded")
    print(f"{len(texts)} captions: perplexity {math.exp(nats / count):.2f}")
    nats, count = negative_log_likelihood(shuffled, "embedded")
    print(f"the same, words shuffled: perplexity {math.exp(nats / count):.2f}")
    means = []
    for text in texts[:1000] + shuffled[:1000]:
        nats, count = negative_log_likelihood([text], "embedded")
        means.append(nats / max(count, 1))
    print(f"AUC of the first 1,000 against their shuffles: {roc_auc_score([0] * 1000 + [1] * 1000, means):.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("wordnet", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help="only measure what is there")
    asked = parser.parse_args()
    if not asked.measure:
        ours = captions(asked.pictures, "train")
        random.Random(SEED).shuffle(ours)
        entries = glosses(asked.wordnet)
        flat = itertools.chain.from_iterable
        train(
            [*flat(ours[500:]), *entries[1::2]],
            [*flat(ours[:500]), *entries[::50]],
            asked.epochs,
        )
    measure(captions(asked.pictures, "dev"))
