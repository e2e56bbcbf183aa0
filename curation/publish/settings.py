"""What a recipe says about publishing."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.captions.endpoint import Endpoint
from curation.images.anyres import PATCH, SIDE, Layout, Rule, Size, layout

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


class Recheck(BaseModel):
    """Before a version is released, its pictures' hosts are asked again whether they may be used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample: int | None = Field(1000, ge=1, description="pictures to ask for, drawn at random; null: every one")
    max_refused_share: float = Field(0.01, ge=0, le=1, description="of the pictures asked for")


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
    recheck: Recheck | None = Field(
        None, description="ask robots.txt, headers and reservations of the pictures again: curation recheck"
    )
    human_evaluation: HumanEvaluation | None = Field(
        None, description="people must have rated a sample of the version well enough: curation review"
    )


class Balance(BaseModel):
    """MetaCLIP's balancing: of what very many captions name, so many samples are drawn; what is rare stays whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concepts: dict[str, tuple[str, ...]] = Field(
        {"*": ("wordnet",)},
        description="lists by language (ISO 639; * for all others): files or URLs, text or gzip, a concept a line; "
        "wordnet: the built-in list. A language without a list is left alone",
    )
    threshold: int | None = Field(
        None,
        ge=1,
        description="samples of a concept from which on it is thinned out; null: chosen by tail_share. MetaCLIP took "
        "20,000 for 400 M samples and 170,000 for 2.5 B",
    )
    tail_share: float = Field(
        0.06,
        gt=0,
        lt=1,
        description="share of all matches that fall on concepts below the threshold: it stays the same for pools of "
        "any size, as a fixed threshold does not",
    )
    unmatched: Literal["drop", "keep"] = Field("drop", description="captions that name no concept; MetaCLIP drops them")
    ignore_case: bool = Field(False, description="MetaCLIP's matching minds the case")
    seed: int = Field(0, ge=0, description="another seed draws other samples")


class Splits(BaseModel):
    """Shares of the samples that are held out, cut so that no domain and no duplicate group is on two sides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    val: float = Field(0.01, ge=0, lt=0.5, description="share for validation")
    test: float = Field(0.01, ge=0, lt=0.5, description="share for tests")
    seed: int = Field(0, ge=0, description="another seed cuts elsewhere")
    take: Literal["train", "val", "test"] = Field("train", description="the part that this version holds")


class AnyRes(BaseModel):
    """How a model of LLaVA-NeXT's kind would cut the pictures: each sample gets its grid and token counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Rule = Field("best_resolution", description="best_resolution (LLaVA-NeXT), or nearest_aspect of 8 grids")
    grids: tuple[tuple[int, int], ...] = Field(
        (), description="columns and rows to choose from, in order; empty: the rule's own"
    )
    side: int = Field(SIDE, ge=1, description="of a view [px]")
    patch: int = Field(PATCH, ge=1, description="of the vision transformer [px]")
    max_views: int | None = Field(None, ge=1, description="M of anyres_max_M; none: the map is never shrunk")

    @model_validator(mode="after")
    def _a_view_holds_a_patch(self) -> "AnyRes":
        if self.patch > self.side:
            raise ValueError(f"patch {self.patch} is larger than side {self.side}")
        if any(min(grid) < 1 for grid in self.grids):
            raise ValueError("grids: columns and rows are 1 or more")
        return self

    def layout(self, size: Size) -> Layout:
        """Grid and token counts of a picture of this width and height."""
        return layout(
            size, rule=self.rule, grids=self.grids, side=self.side, patch=self.patch, max_views=self.max_views
        )


class Converse(BaseModel):
    """Conversations of instruction records, written by an endpoint that sees picture and caption."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: Endpoint = Field(
        description="instruction: a prompt of your own, with {caption} and {turns}; caps are of a shard"
    )
    turns: int = Field(3, ge=1, le=10, description="questions of a conversation")

    @model_validator(mode="after")
    def _asks_about_the_caption(self) -> "Converse":
        try:
            self.endpoint.instruction.format(caption="", turns=1)
        except (KeyError, IndexError, ValueError) as err:
            raise ValueError(f"endpoint.instruction: only {{caption}} and {{turns}} are filled in: {err!r}") from None
        return self


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
    converse: Converse | None = Field(
        None, description="who asks and answers in instruct; null, or where nothing comes of it: templates ask"
    )
    multi_image: Form = Field("", description="records with several images: of one page, or that look alike")
    max_images: int = Field(4, ge=2, le=32, description="images in a multi-image record")
    alike_bits: int = Field(
        12, ge=1, le=16, description="bits of 64 by which the pHash of two pictures of a record may differ"
    )
    seed: int = Field(0, ge=0, description="of the choice of templates")
    perplexity_model: str = Field(
        "embedded",
        description="causal LM that tells the captions' perplexity: embedded (English ones), a folder or name of "
        "transformers; empty: none",
    )
    balance: Balance | None = None
    max_per_domain: int | None = Field(None, ge=1, description="samples of one host of pictures, drawn at random")
    max_domain_share: float | None = Field(
        None, gt=0, le=1, description="the same as a share of all samples that the gates kept"
    )
    splits: Splits | None = None
    anyres: AnyRes | None = Field(None, description="grid and visual tokens of each sample, and of the whole version")
    release: Release = Release()

    @property
    def selects(self) -> bool:
        """Whether samples that every gate kept are chosen among by all others: then publish takes a step more."""
        return bool(self.balance or self.max_per_domain or self.max_domain_share or self.splits)

    @model_validator(mode="after")
    def _publishes_something(self) -> "Publish":
        if not (self.parquet or self.webdataset):
            raise ValueError("parquet and webdataset are both off: nothing would be published")
        if self.embeddings and not self.parquet:
            raise ValueError("embeddings go into the metadata tables: turn parquet on")
        if self.converse and not (self.instruct and self.webdataset):
            raise ValueError("converse writes what instruct holds, about the pictures of webdataset: turn both on")
        if self.splits and not self.webdataset:
            raise ValueError("splits: the held-out parts are indexed from their tars: turn webdataset on")
        if self.release.recheck and not self.parquet:
            raise ValueError("release.recheck reads the metadata tables: turn parquet on")
        return self
