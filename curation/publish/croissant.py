"""Croissant: what a version holds, in the JSON-LD vocabulary that dataset search engines and loaders read."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from curation.publish.export import kind_of, place_of
from curation.schema import COLUMNS
from curation.store import Store

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_ENCODINGS = {
    "metadata": "application/x-parquet",
    "webdataset": "application/x-tar",
    "json": "application/json",
    "jsonl": "application/jsonlines",
    "gz": "application/gzip",
    "html": "text/html",
}


def croissant(store: Store, manifest: dict[str, Any]) -> dict[str, Any]:
    """Croissant 1.0 of a version: each file with its sha256, and the metadata tables as one record set.

    Paths are those in one folder that holds the whole version: the version's own where no file is shared with an
    earlier one, else what `curation export` lays out.
    """
    recipe = manifest["recipe"]
    tables = [file for file in manifest["files"] if kind_of(file["key"]) == "metadata"]
    distribution = [_file(file) for file in manifest["files"]]
    described: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": recipe["name"],
        "description": f"{recipe['description'] or recipe['name']}. {manifest['samples']} image-text pairs of "
        f"{', '.join(manifest['dumps'])}, version {manifest['version']}.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "version": manifest["version"],
        "datePublished": manifest["created_at"],
        "distribution": distribution,
    }
    if tables:
        source = {"fileSet": {"@id": "metadata-tables"}}
        distribution.append(
            {
                "@type": "cr:FileSet",
                "@id": "metadata-tables",
                "name": "metadata-tables",
                "encodingFormat": _ENCODINGS["metadata"],
                "includes": "metadata/*.parquet",
            }
        )
        with store.open_parquet(tables[0]["key"]) as table:
            fields = [_field(field, source) for field in table.schema_arrow]
        described["recordSet"] = [
            {
                "@type": "cr:RecordSet",
                "@id": "samples",
                "name": "samples",
                "description": "One row for each published sample.",
                "key": {"@id": "samples/sample_id"},
                "field": [field for field in fields if field],
            }
        ]
    return described


def _file(file: dict[str, Any]) -> dict[str, Any]:
    kind, suffix = kind_of(file["key"]), file["key"].rpartition(".")[2]
    return {
        "@type": "cr:FileObject",
        "@id": place_of(file["key"]),
        "name": file["key"].rpartition("/")[2],
        "contentUrl": place_of(file["key"]),
        "contentSize": f"{file['size']} B",
        "encodingFormat": _ENCODINGS.get(kind, _ENCODINGS.get(suffix, "application/octet-stream")),
        "sha256": file["sha256"],
    }


def _field(field: pa.Field, source: dict[str, Any]) -> dict[str, Any] | None:
    if pa.types.is_integer(field.type):
        kind = "sc:Integer"
    elif pa.types.is_floating(field.type):
        kind = "sc:Float"
    elif pa.types.is_boolean(field.type):
        kind = "sc:Boolean"
    elif pa.types.is_string(field.type):
        kind = "sc:Text"
    else:
        return None  # embeddings: Croissant 1.0 has no word for vectors
    known = {"key": "name of the sample's files in the tar", "dump": "crawl", "shard": "archive of the crawl"} | {
        "anyres_grid": "columns x rows of AnyRes tiles",
        "anyres_tokens_flat": "visual tokens of all AnyRes views",
        "anyres_tokens_unpadded": "visual tokens without padding, with a newline a row",
    }
    return {
        "@type": "cr:Field",
        "@id": f"samples/{field.name}",
        "name": field.name,
        "description": known.get(field.name) or COLUMNS[field.name].doc,
        "dataType": kind,
        "source": {**source, "extract": {"column": field.name}},
    }
