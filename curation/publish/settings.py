"""What a recipe says about publishing."""

from pydantic import BaseModel, ConfigDict, Field


class Publish(BaseModel):
    """Outputs of a dataset version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parquet: bool = Field(True, description="metadata tables, one a shard")
    webdataset: bool = Field(True, description="tar files with jpg, txt and json, one a shard")
    embeddings: bool = Field(False, description="also write img_emb and txt_emb columns into the metadata tables")
