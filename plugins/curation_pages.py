"""The curation pages inside Airflow's navigation, behind its login: `curation.ui` reads and renders, this serves.

Who may look at DAGs may look here; who may change the DAG `review` may rate.
"""

import os
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode, urlsplit

from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

ROOT = "/curation"
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=128)]
Number = Annotated[int, Path(ge=0, le=1 << 31)]
Similarity = Annotated[str, Query(pattern=r"^$|^-?[01](\.\d{1,6})?$|^-?\.\d{1,6}$")]

app = FastAPI(title="curation", dependencies=[Depends(requires_access_dag(method="GET"))], openapi_url=None)


def store() -> Any:
    """Open the store that the tasks use; the import is heavy, and only requests need it."""
    from curation.store import Store

    return Store(os.environ.get("CURATION_STORE", "var/store"))


def answered(template: str, /, **values: Any) -> HTMLResponse:
    """A page."""
    from curation.ui.pages import HEADERS, render

    return HTMLResponse(render(template, root=ROOT, **values), headers=HEADERS)


def found(read: Callable[[], Any]) -> Any:
    """What is asked for; 404 with the reason when it is not there."""
    from curation.errors import CurationError

    try:
        return read()
    except CurationError as err:
        raise HTTPException(404, str(err)) from err


def from_our_own_page(request: Request) -> None:
    """Refuse what another site's page makes a browser send."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if (site not in (None, "same-origin")) or (site is None and foreign):
        raise HTTPException(403, "sent from a page of another site")


def manifest_of(recipe: str, version: str) -> Any:
    """Manifest of a version."""
    from curation.publish.verify import read_manifest

    return found(lambda: read_manifest(store(), recipe, version))


@app.get("/", response_class=HTMLResponse)
def overview() -> HTMLResponse:
    """List everything that was ever planned, and every version."""
    from curation.block import runs
    from curation.ui.browse import versions

    return answered("overview", runs=runs(store()), versions=versions(store()))


@app.get("/style.css")
def style() -> Response:
    """The style sheet."""
    from curation.ui.pages import style as sheet

    return Response(sheet(), media_type="text/css")


@app.get("/{dump}--{recipe}", response_class=HTMLResponse)
def funnel(dump: Name, recipe: Name) -> HTMLResponse:
    """Show what became of a dump's samples, stage by stage."""
    from curation.block import recipe_key
    from curation.dumps import archives_of
    from curation.pipeline import saved_recipe
    from curation.reports.funnel import funnel as counted

    def read() -> Any:
        pinned = saved_recipe(store(), recipe_key(store(), dump, recipe))
        shards = range(len(archives_of(store(), dump, pinned.stages.extract.archive)))
        return counted(store(), pinned, dump, shards)

    return answered("funnel", funnel=found(read))


@app.get("/versions/{recipe}/{version}", response_class=HTMLResponse)
def version_page(recipe: Name, version: Name) -> HTMLResponse:
    """Show a version: its checks, its parts, and where to go on."""
    from curation.publish.release import held_by, standing_checks
    from curation.review.sets import list_sets

    manifest = manifest_of(recipe, version)
    return answered(
        "version", recipe=recipe, version=version, here=f"{ROOT}/versions/{recipe}/{version}", parts=manifest["parts"],
        held=held_by(store(), manifest), checks=standing_checks(store(), manifest),
        sets=list_sets(store(), recipe, version),
    )  # fmt: skip


@app.get("/versions/{recipe}/{version}/card", response_class=HTMLResponse)
def card(recipe: Name, version: Name) -> HTMLResponse:
    """The data card, as it was published."""
    from curation.publish.parts import version_folder
    from curation.ui.pages import CARD_HEADERS

    manifest_of(recipe, version)
    try:
        content = store().read_bytes(f"{version_folder(recipe, version)}/card.html")
    except FileNotFoundError:
        raise HTTPException(404, "the version has no card") from None
    return HTMLResponse(content, headers=CARD_HEADERS)


@app.get("/versions/{recipe}/{version}/samples", response_class=HTMLResponse)
def samples(
    recipe: Name,
    version: Name,
    start: Annotated[str, Query(pattern=r"^\d{1,9}-\d{1,12}$")] = "0-0",
    text: Annotated[str, Query(max_length=200)] = "",
    language: Annotated[str, Query(max_length=12)] = "",
    at_least: Similarity = "",
    below: Similarity = "",
) -> HTMLResponse:
    """Show samples from a place on that meet the filter."""
    from curation.ui.browse import Filter, Place, page

    part, row = start.split("-")
    bounds = (float(bound) if bound else None for bound in (at_least, below))
    wanted = Filter(text.strip(), language.strip(), *bounds)
    manifest = manifest_of(recipe, version)
    rows, following = found(lambda: page(store(), manifest, Place(int(part), int(row)), wanted))
    query = urlencode({"text": text, "language": language, "at_least": at_least, "below": below})
    return answered(
        "samples", recipe=recipe, version=version, here=f"{ROOT}/versions/{recipe}/{version}", rows=rows, wanted=wanted,
        next=following, query=query,
    )  # fmt: skip


@app.get("/versions/{recipe}/{version}/pictures/{part}/{key}")
def picture(recipe: Name, version: Name, part: Number, key: Name) -> Response:
    """One sample's picture."""
    from curation.ui.browse import picture as read
    from curation.ui.pages import HEADERS

    manifest = manifest_of(recipe, version)
    data, media_type = found(lambda: read(store(), manifest, part, key))
    return Response(data, media_type=media_type, headers=HEADERS)


@app.get("/versions/{recipe}/{version}/review/{name}", response_class=HTMLResponse)
def review(recipe: Name, version: Name, name: Name, user: GetUserDep) -> HTMLResponse:
    """Show the next sample that this person has to rate."""
    from curation.review.ratings import DIMENSIONS, next_item, progress, read_ratings
    from curation.review.report import report, summary
    from curation.review.sets import read_item, read_set

    drawn, rater = found(lambda: read_set(store(), recipe, version, name)), user.get_name()
    item, state = next_item(store(), drawn, rater), progress(store(), drawn)
    shown = None if item is None else found(lambda: read_item(store(), drawn, item))
    told = summary(report(drawn, read_ratings(store(), drawn))) if state["complete"] else ""
    return answered(
        "review", recipe=recipe, version=version, here=f"{ROOT}/versions/{recipe}/{version}", name=name, item=item,
        shown=shown, state=state, rater=rater, dimensions=DIMENSIONS, agreement=told,
    )  # fmt: skip


@app.get("/versions/{recipe}/{version}/review/{name}/pictures/{number}")
def review_picture(recipe: Name, version: Name, name: Name, number: Number) -> Response:
    """The picture of an item."""
    from curation.review.sets import read_item, read_set
    from curation.ui.pages import HEADERS

    shown = found(lambda: read_item(store(), read_set(store(), recipe, version, name), number))
    return Response(shown.picture, media_type=shown.media_type, headers=HEADERS)


@app.post(
    "/versions/{recipe}/{version}/review/{name}",
    dependencies=[Depends(requires_access_dag(method="PUT", param_dag_id="review")), Depends(from_our_own_page)],
)
async def rated(recipe: Name, version: Name, name: Name, user: GetUserDep, request: Request) -> RedirectResponse:
    """Keep a rating and show the next sample."""
    from curation.errors import ConfigError
    from curation.review.ratings import NAMES, rate
    from curation.review.sets import read_set

    body = await request.body()
    if len(body) > 1 << 16:
        raise HTTPException(413, "a rating is short")
    form = {key: values[-1] for key, values in parse_qs(body.decode("utf-8", "replace")).items()}
    drawn = found(lambda: read_set(store(), recipe, version, name))
    given = {dimension: int(form[dimension]) if form.get(dimension, "").isdecimal() else None for dimension in NAMES}
    if not any(given.values()):
        raise HTTPException(400, "nothing is rated: choose at least one value")
    try:
        item = int(form.get("item", ""))
        rate(store(), drawn, {"rater": user.get_name(), "item": item, "comment": form.get("comment", ""), **given})
    except (ValueError, ConfigError) as err:
        raise HTTPException(400, str(err)) from err
    return RedirectResponse(f"{ROOT}/versions/{recipe}/{version}/review/{name}", status_code=303)


class CurationPages(AirflowPlugin):
    """Mount the pages and show them under Browse."""

    name = "curation_pages"
    fastapi_apps = [{"app": app, "url_prefix": ROOT, "name": "curation"}]  # noqa: RUF012  Airflow's form
    external_views = [  # noqa: RUF012
        {"name": "Curation", "href": f"{ROOT}/", "destination": "nav", "category": "browse", "url_route": "curation"}
    ]
