"""What a recipe says about publishing."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Publish(BaseModel):
    """Outputs of a dataset version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parquet: bool = Field(True, description="metadata tables, one a shard")
    webdataset: bool = Field(True, description="tar files with jpg, txt and json, one a shard")
    embeddings: bool = Field(False, description="also write img_emb and txt_emb columns into the metadata tables")

    @model_validator(mode="after")
    def _publishes_something(self) -> "Publish":
        if not (self.parquet or self.webdataset):
            raise ValueError("parquet and webdataset are both off: nothing would be published")
        if self.embeddings and not self.parquet:
            raise ValueError("embeddings go into the metadata tables: turn parquet on")
        return self
