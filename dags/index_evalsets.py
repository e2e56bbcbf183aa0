"""Index an evaluation set, so that the leakage stage of every later run finds its pictures and texts in a crawl.

Reads: pictures of a folder, Parquet, WebDataset, a dataset saved by `datasets`, or LLaVA's or VQA's JSON.

Writes: one version of the set in the store: hashes, word sequences, and with a model the pictures' embeddings.

Rerun: safe. A set that changed becomes a new version, which later runs take; runs under way keep theirs.

Cost: milliseconds a picture without a model, and its forward pass with one.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task
from curation_dags import DEFAULT_ARGS, EVALSETS, made, store
from curation_notices import watched

TEXTS = {
    "name": "Name that recipes use: stages.leakage.evalsets.",
    "path": "Folder or file of the set, as the workers see it.",
    "images": "Where a JSON's pictures lie; empty: beside it.",
    "model": "CLIP model to embed the pictures with: embedded, or an architecture of open_clip; empty: none.",
    "pretrained": "Tag or file of the architecture's weights.",
}
FIELDS: dict[str, dict[str, Any]] = {
    "name": {"type": "string", "pattern": r"^[A-Za-z0-9][\w.-]*$", "examples": ["coco-val"]},
    "path": {"type": "string", "examples": ["/data/coco/val2017"]},
    "images": {"default": None, "type": ["null", "string"]},
    "model": {"default": None, "type": ["null", "string"], "examples": ["embedded", "ViT-B-32"]},
    "pretrained": {"default": None, "type": ["null", "string"], "examples": ["laion2b_s34b_b79k"]},
}


@dag(
    schedule=None,
    catchup=False,
    params={name: Param(title=name.title(), description=TEXTS[name], **schema) for name, schema in FIELDS.items()},
    doc_md=__doc__,
    tags=["leakage"],
    default_args=DEFAULT_ARGS,
    **watched(hours=12),
)
def index_evalsets() -> None:
    """One task, on a GPU worker: a model may be asked for."""

    @task(queue="gpu", execution_timeout=timedelta(hours=12), outlets=[EVALSETS])
    def index(params: dict[str, Any]) -> str:
        from pathlib import Path

        from curation.errors import ConfigError
        from curation.evalsets import clip_describer, index_evalset

        path = Path(params["path"])
        if not path.exists():
            raise ConfigError(f"path: {path} is not there, as this worker sees it")
        model = params["model"]
        describe, space = clip_describer(model, params["pretrained"] or "") if model else (None, "")
        images = Path(params["images"]) if params["images"] else None
        key = index_evalset(store(), params["name"], path, images=images, describe=describe, space=space).key
        made(EVALSETS, name=params["name"], key=key)
        return key

    index()


index_evalsets()
