"""Pages on a dump, for plugins/curation_pages.py: what became of its samples, and why."""

from typing import Annotated, Any

from curation_web import Name, Number, Similarity, answered, found, store
from fastapi import APIRouter, Path, Query
from fastapi.responses import HTMLResponse, Response

Column = Annotated[str, Query(pattern=r"^(similarity|aesthetic|punsafe)$")]
Sort = Annotated[str, Query(pattern=r"^$|^-?(similarity|aesthetic|punsafe)$")]
Start = Annotated[str, Query(pattern=r"^\d{1,9}-\d{1,12}$")]
Reason = Annotated[str, Query(pattern=r"^[a-z0-9_]*$", max_length=40)]
From = Annotated[int, Query(ge=0, le=10_000)]

router = APIRouter(prefix="/dumps/{dump}/{recipe}")


def opened(dump: str, recipe: str) -> Any:
    """The dump as the recipe has it; 404 where it never ran."""
    from curation.ui.sources import open_dump

    return found(lambda: open_dump(store(), dump, recipe))


def shown(template: str, dump: Any, /, **values: Any) -> HTMLResponse:
    """A page on a dump."""
    from curation.ui.pages import address

    return answered(template, dump=dump, here=address("dumps", dump.dump, dump.recipe.name), **values)


@router.get("", response_class=HTMLResponse)
def funnel(dump: Name, recipe: Name) -> HTMLResponse:
    """Show what became of a dump's samples, stage by stage."""
    from curation.ui.counting import WAIT_S
    from curation.ui.standing import counted_funnel

    source = opened(dump, recipe)
    return shown("funnel", source, counted=found(lambda: counted_funnel(source, WAIT_S)))


@router.get("/samples", response_class=HTMLResponse)
def samples(
    dump: Name,
    recipe: Name,
    start: Start = "0-0",
    text: Annotated[str, Query(max_length=200)] = "",
    language: Annotated[str, Query(max_length=12)] = "",
    at_least: Similarity = "",
    below: Similarity = "",
    reason: Reason = "",
    sort: Sort = "",
) -> HTMLResponse:
    """Show samples with what became of each, dropped ones too."""
    from curation.ui.listing import asked, listed
    from curation.verdicts import REASONS

    source = opened(dump, recipe)
    wanted = asked(text, language, at_least, below, reason)
    page = found(lambda: listed(source, wanted, sort, start))
    return shown("samples", source, page=page, wanted=wanted, sort=sort, reasons=sorted(REASONS))


@router.get("/pictures/{shard}/{row}")
def picture(dump: Name, recipe: Name, shard: Number, row: Annotated[int, Path(ge=0, le=1 << 40)]) -> Response:
    """One sample's picture."""
    from curation.ui.pages import PICTURE_HEADERS

    source = opened(dump, recipe)
    data, media_type = found(lambda: source.picture(shard, row))
    return Response(data, media_type=media_type, headers=PICTURE_HEADERS)


@router.get("/threshold", response_class=HTMLResponse)
def threshold(dump: Name, recipe: Name, column: Column = "similarity", line: Similarity = "") -> HTMLResponse:
    """Show how a measure is spread, and what a threshold would keep."""
    from curation.ui.dump_reports import threshold as explored

    source = opened(dump, recipe)
    found_at = found(lambda: explored(source, column, float(line) if line else None))
    return shown("threshold", source, column=column, **found_at)


@router.get("/duplicates", response_class=HTMLResponse)
def duplicates(dump: Name, recipe: Name, first: From = 0) -> HTMLResponse:
    """Show the largest groups of duplicates, the kept one first."""
    from curation.ui.dump_reports import duplicates as grouped

    source = opened(dump, recipe)
    return shown("duplicates", source, first=first, counted=found(lambda: grouped(source)))


@router.get("/leakage", response_class=HTMLResponse)
def leakage(dump: Name, recipe: Name) -> HTMLResponse:
    """Show what hit the evaluation sets, sample and item side by side."""
    from curation.ui.dump_reports import leakage as hits

    source = opened(dump, recipe)
    return shown("leakage", source, counted=found(lambda: hits(source)))


@router.get("/audit", response_class=HTMLResponse)
def audit(dump: Name, recipe: Name) -> HTMLResponse:
    """Show whom and what the filters let through."""
    from curation.ui.dump_reports import audit as audited

    source = opened(dump, recipe)
    return shown("audit", source, counted=found(lambda: audited(source)))


@router.get("/captions", response_class=HTMLResponse)
def captions(
    dump: Name, recipe: Name, start: Start = "0-0", other: Annotated[str, Query(pattern=r"^[\w.-]*$")] = ""
) -> HTMLResponse:
    """Show captions side by side: the page's own, the synthetic one, another recipe's."""
    from curation.ui.dump_reports import captions as compared

    source = opened(dump, recipe)
    beside = opened(dump, other) if other else None
    return shown("captions", source, **found(lambda: compared(source, start, beside)))
