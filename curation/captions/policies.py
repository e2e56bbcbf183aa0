"""Policies of CapFilt: which of a picture's texts become pairs."""

from __future__ import annotations

from typing import Literal

from curation.receipt import digest

Policy = Literal["keep_text", "prefer_synthetic", "best_above_threshold", "both_above_threshold", "best_of_n", "mix"]
Source = Literal["text", "synthetic"]
Choice = tuple[str, Source]

DEFAULT_THRESHOLDS: dict[Policy, float] = {"both_above_threshold": 0.5}  # Li et al. 2022 (BLIP), released filter
DEFAULT_THRESHOLD = 0.8


def choose(
    policy: Policy,
    threshold: float,
    text: str,
    synthetic: str | None,
    score_text: float,
    score_synthetic: float | None,
    *,
    drawn: bool = False,
) -> list[Choice]:
    """Captions that a policy takes, with their sources: none, one, or for both_above_threshold two.

    synthetic         best synthetic caption; None: none was made
    score_text, score_synthetic   how well each matches the picture; None where there is no synthetic
    drawn             what `draws_synthetic` says of the sample; `mix` alone reads it
    """
    originals: list[Choice] = [(text, "text")]
    if policy == "keep_text":
        return originals
    if synthetic is None or score_synthetic is None:
        if policy == "best_of_n":
            return []
        return originals if policy == "mix" or score_text >= threshold else []
    made: list[Choice] = [(synthetic, "synthetic")]
    if policy == "best_of_n":
        return made
    if policy == "mix":
        return made if drawn else originals
    if policy == "both_above_threshold":
        kept = originals if score_text >= threshold else []
        # the same words twice would be one pair counted double
        return kept + made if score_synthetic >= threshold and not (kept and synthetic == text) else kept
    if score_synthetic > score_text:
        return made if policy == "prefer_synthetic" or score_synthetic >= threshold else []
    return originals if score_text >= threshold else []


def draws_synthetic(sample_id: str, share: float, seed: int) -> bool:
    """Whether `mix` takes the synthetic caption of a sample: true for `share` of all, the same in every run."""
    return int(digest("mix", str(seed), sample_id)[:13], 16) < share * 16**13
