"""Train and measure the embedded captioner and matcher on a folder of captioned pictures.

    python scripts/train_embedded_blip.py PICTURES --cache DIR [--only captioner|matcher] [--measure]

reads    PICTURES/captions.jsonl (image, split "train" or "dev", en: captions) and PICTURES/images
writes   curation/models/embedded_blip/{captioner,matcher}: trained weights only (float16 safetensors), configuration;
         the two towers' outputs are kept in --cache, 184 MB for 4,500 pictures
splits   500 of the train pictures choose the epoch and calibrate the ITM threshold; "dev" is measured once, at the end
costs    on one slow core 8 minutes of tower outputs, 7 for the captioner and 15 for the matcher; seeds are fixed
"""

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from caption_metrics import bleu4, cider_d
from captioned_pictures import Pictures, image_processor, means, most_common_caption, read_pictures
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tokenizers import BertWordPieceTokenizer
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoTokenizer, BertModel, BertTokenizer, BlipProcessor

from curation.models import lite_blip
from curation.models.embedded.assemble import MINILM
from curation.models.embedded_blip.assemble import HERE as EMBEDDED

SEED = 0
MAX_TOKENS = 26  # 99 % of the captions; the rest is cut
BOILERPLATE = """image|photo|picture|logo|banner|icon|img_2034.jpg|dsc00412.jpg|untitled|click to enlarge|read more|
buy now free shipping|home page|add to cart|sale 50% off|advertisement|loading|share on facebook|menu|profile picture|
thumbnail 3 of 12|copyright 2019 all rights reserved|next slide|sponsored|screenshot|default avatar|view all products|
subscribe to our newsletter|price $19.99|model no. kx-4471b|chapter 3 figure 2|1920x1080 wallpaper|wholesale supplier|
best seo services 2021|download pdf|related posts|customer reviews|user 48213|play video|back to top""".replace(
    "\n", ""
)


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """One cycle: 10 % warm-up to the optimizer's rate, then a cosine to nothing."""
    rate = optimizer.param_groups[0]["lr"]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)


def save_trained(model: torch.nn.Module, frozen: tuple[str, ...], folder: Path) -> None:
    """Write the weights that were trained, float16, leaving out frozen towers and tied copies."""
    folder.mkdir(parents=True, exist_ok=True)
    tied = ("text_decoder.cls.predictions.decoder.",)
    trained = {k: v.half().contiguous() for k, v in model.state_dict().items() if not k.startswith(frozen + tied)}
    save_file(trained, folder / "trained.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


# captioner


def caption_tokenizer(pictures: Pictures, path: Path) -> BertTokenizer:
    """WordPiece of 2,600 entries from the captions learnt from, with BLIP's [DEC] as the start token."""
    trainer = BertWordPieceTokenizer(lowercase=True)
    texts = [c for row in pictures.fit for c in pictures.captions[row]]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    trainer.train_from_iterator(texts, vocab_size=2600, min_frequency=2, special_tokens=special, show_progress=False)
    tokenizer = BertTokenizer(vocab=trainer.get_vocab(), bos_token="[DEC]")
    BlipProcessor(image_processor(), tokenizer).save_pretrained(path)
    return tokenizer


def train_captioner(pictures: Pictures, folder: Path, epochs: int) -> None:
    """Language modelling on three captions a picture and epoch; the epoch with the best CIDEr-D on `choose` stays."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    tokenizer = caption_tokenizer(pictures, folder)
    start, end = tokenizer.bos_token_id, tokenizer.sep_token_id
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.3,
        "attention_probs_dropout_prob": 0.1,
        "label_smoothing": 0.1,
        "bos_token_id": start,
        "eos_token_id": end,
        "sep_token_id": end,
        "pad_token_id": 0,
    }
    config = lite_blip.LiteBlipConfig(text_config=text, vision_config={"hidden_size": 192, "token_dropout": 0.1})
    model = lite_blip.LiteBlipForConditionalGeneration(config)
    ids = [[[start, *tokenizer(c, add_special_tokens=False).input_ids[: MAX_TOKENS - 2], end] for c in captions]
           for captions in pictures.captions]  # fmt: skip
    trained = [p for n, p in model.named_parameters() if not n.startswith("vision_model.tower.")]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    batch = 32
    steps = epochs * -(-len(pictures.fit) // batch)
    rates, best, began = schedule(optimizer, steps), -1.0, time.time()
    for epoch in range(epochs):
        model.train()
        order = rng.sample(pictures.fit, len(pictures.fit))
        total = 0.0
        for at in range(0, len(order), batch):
            rows = order[at : at + batch]
            grids = pictures.grids(rows)
            sequences = [torch.tensor(s) for row in rows for s in rng.sample(ids[row], 3)]
            tokens = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
            mask = (tokens != 0).long()
            with torch.autocast("cpu", torch.bfloat16):
                seen = model.vision_model.tokens(grids).repeat_interleave(3, dim=0)
                loss = model.text_decoder(
                    input_ids=tokens, attention_mask=mask, encoder_hidden_states=seen,
                    labels=tokens.masked_fill(mask == 0, -100),
                ).loss  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            rates.step()
            total += loss.item() * len(rows)
        line = f"captioner epoch {epoch + 1} loss {total / len(order):.3f} {time.time() - began:.0f} s"
        if epoch % 2 == 1 or epoch == epochs - 1:
            made = captions_of(model, tokenizer, pictures, pictures.choose, beams=1)
            score = cider_d(made, [pictures.captions[r] for r in pictures.choose])
            line += f" CIDEr-D {score:.3f} {made[:2]}"
            if score > best:
                best = score
                save_trained(model, ("vision_model.tower.",), folder)
        print(line, flush=True)


def captions_of(
    model: lite_blip.LiteBlipForConditionalGeneration, tokenizer: BertTokenizer, pictures: Pictures, rows: list[int],
    beams: int,
) -> list[str]:  # fmt: skip
    """One caption per picture from stored grids, by greedy or beam search, 5 to 20 tokens."""
    model.eval()
    made = []
    for at in range(0, len(rows), 100):
        part = rows[at : at + 100]
        with torch.inference_mode():
            seen = model.vision_model.tokens(pictures.grids(part))
            out = model.text_decoder.generate(
                input_ids=torch.full((len(part), 1), tokenizer.bos_token_id), encoder_hidden_states=seen,
                num_beams=beams, min_new_tokens=5, max_new_tokens=20, do_sample=False,
                eos_token_id=tokenizer.sep_token_id, pad_token_id=0,
            )  # fmt: skip
        made += tokenizer.batch_decode(out, skip_special_tokens=True)
    return made


def measure_captioner(pictures: Pictures, folder: Path) -> None:
    """Print BLEU-4 and CIDEr-D on the dev pictures, beside two baselines that look at no or at one other picture."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = lite_blip.LiteBlipForConditionalGeneration(lite_blip.LiteBlipConfig.from_pretrained(folder))
    model.load_state_dict(load_file(folder / "trained.safetensors"), strict=False)
    references = [pictures.captions[r] for r in pictures.dev]
    known = normalize(torch.from_numpy(means(pictures, pictures.fit)), dim=-1)
    asked = normalize(torch.from_numpy(means(pictures, pictures.dev)), dim=-1)
    nearest = (asked @ known.T).argmax(dim=1).tolist()
    systems = {
        "most common caption": [most_common_caption(pictures)] * len(references),
        "caption of the nearest train picture": [pictures.captions[pictures.fit[i]][0] for i in nearest],
        "embedded captioner, greedy": captions_of(model, tokenizer, pictures, pictures.dev, beams=1),
        "embedded captioner, beam 3": captions_of(model, tokenizer, pictures, pictures.dev, beams=3),
    }
    print(f"| {len(references)} dev pictures, 5 references | BLEU-4 | CIDEr-D |\n| --- | --- | --- |")
    for name, made in systems.items():
        print(f"| {name} | {100 * bleu4(made, references):.1f} | {cider_d(made, references):.3f} |")


# matcher


@dataclass(frozen=True)
class Words:
    """Frozen sentence encoder outputs of texts: states float16 (n, MAX_TOKENS, 384), mask bool (n, MAX_TOKENS)."""

    states: np.ndarray
    mask: np.ndarray

    def of(self, texts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Word states float32 (n, length, 384) and mask int64 (n, length) of texts, cut to the longest."""
        mask = torch.from_numpy(self.mask[texts])
        length = int(mask.sum(dim=1).max())
        return torch.from_numpy(self.states[texts, :length].astype(np.float32)), mask[:, :length].long()


def encode_words(texts: list[str], wanted: list[int], model: lite_blip.LiteBlipForImageTextRetrieval) -> Words:
    """Run the frozen sentence encoder once over the wanted texts; the rows of the others stay zero."""
    tokenizer = AutoTokenizer.from_pretrained(MINILM.path().parent)
    states = np.zeros((len(texts), MAX_TOKENS, 384), dtype=np.float16)
    mask = np.zeros((len(texts), MAX_TOKENS), dtype=bool)
    order = sorted(wanted, key=lambda i: len(texts[i]))  # similar lengths together: little padding
    for at in range(0, len(order), 256):
        part = order[at : at + 256]
        made = tokenizer([texts[i] for i in part], padding=True, truncation=True, max_length=MAX_TOKENS,
                         return_tensors="pt")  # fmt: skip
        with torch.inference_mode():
            words = model.text_encoder.embeddings.words(made.input_ids)
        states[part, : words.shape[1]] = words.half().numpy()
        mask[part, : words.shape[1]] = made.attention_mask.numpy()
    return Words(states, mask)


def all_texts(pictures: Pictures) -> tuple[list[str], list[int]]:
    """Captions (5 * row + k is caption k of a picture) followed by boilerplate, and the places of the latter."""
    captions, boilerplate = [c for five in pictures.captions for c in five], BOILERPLATE.split("|")
    return captions + boilerplate, list(range(len(captions), len(captions) + len(boilerplate)))


def empty_matcher() -> lite_blip.LiteBlipForImageTextRetrieval:
    """The matcher before training: its sentence encoder is loaded, the rest is random."""
    sentence = BertModel.from_pretrained(MINILM.path().parent, add_pooling_layer=False)
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    text = {
        "vocab_size": sentence.config.vocab_size,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "max_position_embeddings": 8,
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 101,
        "eos_token_id": 102,
        "sep_token_id": 102,
        "pad_token_id": 0,
        "sentence_config": {name: getattr(sentence.config, name) for name in kept},
    }
    vision = {"hidden_size": 256, "token_dropout": 0.3}
    model = lite_blip.LiteBlipForImageTextRetrieval(
        lite_blip.LiteBlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=256)
    )
    model.text_encoder.embeddings.encoder.load_state_dict(sentence.state_dict())
    return model


MATCHER_FROZEN = ("vision_model.tower.", "text_encoder.embeddings.encoder.")


def train_matcher(pictures: Pictures, folder: Path, epochs: int) -> None:
    """Align (ITC alone, large batches), then train ITM with hard negatives as BLIP does, then set 0.5 in its place."""
    torch.manual_seed(SEED + 1)
    rng = random.Random(SEED + 1)
    model = empty_matcher()
    texts, noise = all_texts(pictures)
    learnt = [5 * row + k for row in pictures.fit + pictures.choose for k in range(5)]
    words = encode_words(texts, learnt + noise, model)
    noise = noise[::2]  # the other half is measured
    trained = [p for n, p in model.named_parameters() if not n.startswith(MATCHER_FROZEN)]
    began = time.time()
    for name, batch, rounds, rate in (("itc", 500, 3 * epochs, 2e-3), ("itm", 64, epochs, 5e-4)):
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.05)
        rates = schedule(optimizer, rounds * -(-len(pictures.fit) // batch))
        for epoch in range(rounds):
            model.train()
            order = rng.sample(pictures.fit, len(pictures.fit))
            total = 0.0
            for at in range(0, len(order), batch):
                rows = order[at : at + batch]
                chosen = [5 * row + rng.randrange(5) for row in rows]
                loss = matcher_loss(model, pictures, words, rows, chosen, rng.sample(noise, 6) if name == "itm" else [])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                rates.step()
                total += loss.item() * len(rows)
            if name == "itm" or epoch % 6 == 5:
                right, wrong = match_scores(model, pictures, words, pictures.choose[:250], seed=1)
                auc = roc_auc_score([1] * len(right) + [0] * len(wrong), np.concatenate([right, wrong]))
                print(f"matcher {name} {epoch + 1} loss {total / len(order):.3f} AUC {auc:.3f} "
                      f"{time.time() - began:.0f} s", flush=True)  # fmt: skip
    calibrate(model, pictures, words)
    save_trained(model, MATCHER_FROZEN, folder)
    image_processor().save_pretrained(folder)  # the tokenizer is the sentence encoder's: assembly copies it


def matcher_loss(
    model: lite_blip.LiteBlipForImageTextRetrieval, pictures: Pictures, words: Words, rows: list[int],
    chosen: list[int], noise: list[int],
) -> torch.Tensor:  # fmt: skip
    """ITC of a batch, plus (if noise texts are given) ITM of its right pairs against hard, random and noise texts."""
    n = len(rows)
    grids = pictures.grids(rows)
    states, mask = words.of(chosen + noise)
    image_tokens, projected = model.vision_model.tokens(grids), model.text_encoder.embeddings.project(states)
    image, text = model.cosine_features(image_tokens, projected[:n])
    similar = image @ text.T / 0.07
    target = torch.arange(n)
    loss = (cross_entropy(similar, target) + cross_entropy(similar.T, target)) / 2
    if noise:
        with torch.no_grad():  # BLIP, section 3.3: negatives drawn by similarity; half of them here at random
            mixed = 0.5 * similar.softmax(dim=1) + 0.5 / n
            other_text = torch.multinomial(mixed.fill_diagonal_(0), 1)[:, 0]
            mixed = 0.5 * similar.T.softmax(dim=1) + 0.5 / n
            other_image = torch.multinomial(mixed.fill_diagonal_(0), 1)[:, 0]
        other_text[: len(noise)] = torch.arange(n, n + len(noise))
        images = torch.cat([target, target, other_image])
        texts = torch.cat([target, other_text, target])
        logits = model.match_logits(image_tokens[images], projected[texts], mask[texts])
        loss = 0.5 * loss + cross_entropy(logits, (torch.arange(3 * n) < n).long())
    return loss


def match_scores(
    model: lite_blip.LiteBlipForImageTextRetrieval, pictures: Pictures, words: Words, rows: list[int], seed: int,
    texts: list[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """ITM log-odds of every right caption, and of as many wrong ones: another picture's, or one of the given texts."""
    rng = random.Random(seed)
    model.eval()
    right, wrong = [], []
    with torch.inference_mode():
        for row in rows:
            mine = [5 * row + k for k in range(5)]
            others = [5 * rng.choice([r for r in rows if r != row]) + rng.randrange(5) for _ in range(5)]
            if texts is not None:
                others = rng.sample(texts, 5)
            states, mask = words.of(mine + others)
            tokens = model.vision_model.tokens(pictures.grids([row])).expand(10, -1, -1)
            logits = model.match_logits(tokens, model.text_encoder.embeddings.project(states), mask)
            odds = (logits[:, 1] - logits[:, 0]).numpy()
            right.append(odds[:5])
            wrong.append(odds[5:])
    return np.concatenate(right), np.concatenate(wrong)


def calibrate(model: lite_blip.LiteBlipForImageTextRetrieval, pictures: Pictures, words: Words) -> None:
    """Scale and shift the ITM head (Platt) so that 0.5 parts right from random wrong captions, one to one."""
    right, wrong = match_scores(model, pictures, words, pictures.choose, seed=2)
    platt = LogisticRegression(C=1e6).fit(np.concatenate([right, wrong])[:, None], [1] * len(right) + [0] * len(wrong))
    with torch.no_grad():
        model.itm_head.weight *= float(platt.coef_[0, 0])
        model.itm_head.bias *= float(platt.coef_[0, 0])
        model.itm_head.bias[1] += float(platt.intercept_[0])


def measure_matcher(pictures: Pictures, folder: Path) -> None:
    """Print how the matcher parts right from wrong captions of the dev pictures."""
    model = empty_matcher()
    model.load_state_dict(load_file(folder / "trained.safetensors"), strict=False)
    texts, boilerplate = all_texts(pictures)
    words = encode_words(texts, [5 * row + k for row in pictures.dev for k in range(5)] + boilerplate, model)
    right, wrong = match_scores(model, pictures, words, pictures.dev, seed=3)
    _, noise = match_scores(model, pictures, words, pictures.dev, seed=4, texts=boilerplate[1::2])
    auc = roc_auc_score([1] * len(right) + [0] * len(wrong), np.concatenate([right, wrong]))
    print(f"| {len(right)} right and {len(wrong)} wrong captions of {len(pictures.dev)} pictures | |\n| --- | --- |")
    print(f"| AUC, right against a random other picture's caption | {auc:.3f} |")
    print(f"| accuracy at 0.5 | {((right > 0).mean() + (wrong < 0).mean()) / 2:.3f} |")
    print(f"| right captions kept at 0.5 | {(right > 0).mean():.3f} |")
    print(f"| wrong captions kept at 0.5 | {(wrong > 0).mean():.3f} |")
    print(f"| boilerplate (not trained on) kept at 0.5 | {(noise > 0).mean():.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument("--only", choices=("captioner", "matcher"))
    parser.add_argument("--measure", action="store_true", help="measure what was trained before, train nothing")
    parser.add_argument("--epochs", type=int, default=12)
    asked = parser.parse_args()
    captioned = read_pictures(asked.pictures, asked.cache)
    if asked.only != "matcher":
        if not asked.measure:
            train_captioner(captioned, asked.out / "captioner", asked.epochs)
        measure_captioner(captioned, asked.out / "captioner")
    if asked.only != "captioner":
        if not asked.measure:
            train_matcher(captioned, asked.out / "matcher", asked.epochs)
        measure_matcher(captioned, asked.out / "matcher")
