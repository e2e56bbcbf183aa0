"""What a recipe says about publishing."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Form = Literal["", "json", "jsonl", "json.gz", "jsonl.gz"]
"""How records are written: one JSON array, or a record a line; "" writes none."""

KINDS = ("metadata", "webdataset", "pretrain", "instruct", "multi_image")
"""Kinds of files of a version."""


class HumanEvaluation(BaseModel):
    """What raters must have found of a version; the largest review set counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_mean_rating: float = Field(3.5, ge=1, le=5, description="mean of each of the four dimensions, 1 to 5")
    min_alpha: float = Field(
        0.667,
        ge=-1,
        le=1,
        description="Krippendorff's alpha of each dimension; 0.667 is the least that allows tentative conclusions, "
        "0.8 is reliable (Krippendorff 2004)",
    )
    min_raters: int = Field(2, ge=2, description="people who have rated")
    min_items: int = Field(50, ge=1, description="items rated by two and more; all, where the set has fewer")


class Release(BaseModel):
    """What a version must meet before `latest` moves to it; one that does not is written, and held."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_leaks: int = Field(0, ge=0, description="kept samples that the leakage stage found in an evaluation set")
    max_unsafe_share: float = Field(
        0.05, ge=0, le=1, description="share of kept samples tagged unsafe; LAION-5B's English part has about 3 %"
    )
    max_opt_outs: int = Field(0, ge=0, description="kept samples whose page or response refuses use for AI")
    max_drift: float = Field(
        0.25,
        gt=0,
        description="population stability index against the version before, of any measured column; 0.25 is the "
        "usual bound of a major shift",
    )
    drift_from_samples: int = Field(1000, ge=1, description="both versions must have so many for drift to count")
    approval: bool = Field(False, description="a person must approve: curation release RECIPE VERSION --by NAME")
    human_evaluation: HumanEvaluation | None = Field(
        None, description="people must have rated a sample of the version well enough: curation review"
    )


class Publish(BaseModel):
    """Outputs of a dataset version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parquet: bool = Field(True, description="metadata tables, one a shard")
    webdataset: bool = Field(True, description="tar files with jpg, txt and json, one a shard")
    embeddings: bool = Field(False, description="also write img_emb and txt_emb columns into the metadata tables")
    pretrain: Form = Field(
        "", description='pre-training records {"image", "caption"}: json, jsonl, with or without .gz'
    )
    instruct: Form = Field("", description="instruction records of LLaVA's form, built from captions by templates")
    multi_image: Form = Field("", description="records with several images: of one page, or that look alike")
    max_images: int = Field(4, ge=2, le=32, description="images in a multi-image record")
    alike_bits: int = Field(
        12, ge=1, le=16, description="bits of 64 by which the pHash of two pictures of a record may differ"
    )
    seed: int = Field(0, ge=0, description="of the choice of templates")
    perplexity_model: str = Field(
        "",
        description="causal LM of transformers, a folder or a name, that tells the captions' perplexity; empty: none",
    )
    release: Release = Release()

    @model_validator(mode="after")
    def _publishes_something(self) -> "Publish":
        if not (self.parquet or self.webdataset):
            raise ValueError("parquet and webdataset are both off: nothing would be published")
        if self.embeddings and not self.parquet:
            raise ValueError("embeddings go into the metadata tables: turn parquet on")
        return self
