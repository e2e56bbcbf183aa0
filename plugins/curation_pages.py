"""The curation pages inside Airflow's navigation, behind its login: `curation.ui` reads and renders, this serves.

Who may look at DAGs may look here; who may change the DAG `review` may rate; who may trigger the DAG `takedown` may
file one.
"""

import sys
from threading import Thread
from typing import Annotated, Any
from urllib.parse import urlencode

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.plugins_manager import AirflowPlugin
from curation_dump_pages import Sort, Start
from curation_dump_pages import router as dump_pages
from curation_web import Name, Number, Similarity, answered, form_of, found, from_our_own_page, store
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

ROOT = "/curation"
WARM = (  # these load all the rest; pyarrow loads pandas itself, in the middle of a page
    *("curation.ui.standing", "curation.ui.listing", "curation.ui.dump_reports", "curation.ui.version_reports"),
    *("curation.ui.takedowns", "pandas"),
)
app = FastAPI(title="curation", dependencies=[Depends(requires_access_dag(method="GET"))], openapi_url=None)
app.include_router(dump_pages)


def version_of(recipe: str, version: str) -> Any:
    """The version; 404 where it is not."""
    from curation.ui.sources import open_version

    return found(lambda: open_version(store(), recipe, version))


def shown(template: str, recipe: str, version: str, /, **values: Any) -> HTMLResponse:
    """A page on a version."""
    from curation.ui.pages import address

    here = address("versions", recipe, version)
    return answered(template, recipe=recipe, version=version, here=here, **values)


@app.get("/", response_class=HTMLResponse)
def overview(page: Annotated[int, Query(ge=0, le=10_000)] = 0) -> HTMLResponse:
    """List everything that was ever planned with its progress, and every version."""
    from curation.block import runs
    from curation.ui.browse import versions
    from curation.ui.standing import DUMPS, standings

    planned = runs(store())
    told = found(lambda: standings(store(), planned[page * DUMPS : (page + 1) * DUMPS]))
    more = (page + 1) * DUMPS < len(planned)
    return answered("overview", standings=told, planned=len(planned), page=page, more=more, versions=versions(store()))


@app.get("/files/{name}")
def file(name: Name) -> Response:
    """The style sheet, and the script for keys and the movable line."""
    from curation.ui.pages import FILE_HEADERS, FILES, read_file

    if name not in FILES:
        raise HTTPException(404, "there is no such file")
    return Response(read_file(name), media_type=FILES[name], headers=FILE_HEADERS)


@app.get("/versions/{recipe}/{version}", response_class=HTMLResponse)
def version_page(recipe: Name, version: Name) -> HTMLResponse:
    """Show a version: its checks, its parts, and where to go on."""
    from curation.publish.release import held_by, standing_checks
    from curation.review.sets import list_sets
    from curation.ui.browse import versions

    manifest = version_of(recipe, version).manifest
    others = [one.version for one in versions(store()) if one.recipe == recipe and one.version != version]
    return shown(
        "version", recipe, version, manifest=manifest, held=held_by(store(), manifest), others=others,
        checks=standing_checks(store(), manifest), sets=list_sets(store(), recipe, version),
    )  # fmt: skip


@app.get("/versions/{recipe}/{version}/card", response_class=HTMLResponse)
def card(recipe: Name, version: Name) -> HTMLResponse:
    """The data card, as it was published."""
    from curation.publish.parts import version_folder
    from curation.ui.pages import CARD_HEADERS

    version_of(recipe, version)
    try:
        content = store().read_bytes(f"{version_folder(recipe, version)}/card.html")
    except FileNotFoundError:
        raise HTTPException(404, "the version has no card") from None
    return HTMLResponse(content, headers=CARD_HEADERS)


@app.get("/versions/{recipe}/{version}/diff", response_class=HTMLResponse)
def diff(recipe: Name, version: Name, old: Annotated[str, Query(pattern=r"^[A-Za-z0-9][\w.-]*$")]) -> HTMLResponse:
    """Show what changed since another version."""
    from curation.ui.version_reports import difference

    version_of(recipe, version), version_of(recipe, old)
    return shown("diff", recipe, version, old=old, counted=found(lambda: difference(store(), recipe, old, version)))


@app.get("/versions/{recipe}/{version}/samples", response_class=HTMLResponse)
def samples(
    recipe: Name,
    version: Name,
    start: Start = "0-0",
    text: Annotated[str, Query(max_length=200)] = "",
    language: Annotated[str, Query(max_length=12)] = "",
    at_least: Similarity = "",
    below: Similarity = "",
    sort: Sort = "",
) -> HTMLResponse:
    """Show samples from a place on that meet the filter."""
    from curation.ui.listing import asked, listed

    source, wanted = version_of(recipe, version), asked(text, language, at_least, below)
    page = found(lambda: listed(source, wanted, sort, start))
    return shown("samples", recipe, version, page=page, wanted=wanted, sort=sort, reasons=None)


@app.get("/versions/{recipe}/{version}/pictures/{part}/{key}")
def picture(recipe: Name, version: Name, part: Number, key: Name) -> Response:
    """One sample's picture."""
    from curation.ui.pages import PICTURE_HEADERS

    source = version_of(recipe, version)
    data, media_type = found(lambda: source.picture(part, key))
    return Response(data, media_type=media_type, headers=PICTURE_HEADERS)


@app.get("/versions/{recipe}/{version}/review/{name}", response_class=HTMLResponse)
def review(recipe: Name, version: Name, name: Name, user: GetUserDep) -> HTMLResponse:
    """Show the next sample that this person has to rate."""
    from curation.review.ratings import DIMENSIONS, next_item, progress
    from curation.review.sets import read_item, read_set
    from curation.ui.version_reports import agreement

    drawn, rater = found(lambda: read_set(store(), recipe, version, name)), user.get_name()
    item, state = next_item(store(), drawn, rater), progress(store(), drawn)
    sample = None if item is None else found(lambda: read_item(store(), drawn, item))
    told = agreement(store(), drawn) if state["ratings"] else None
    return shown(
        "review", recipe, version, name=name, item=item, shown=sample, state=state, rater=rater, dimensions=DIMENSIONS,
        counted=told,
    )  # fmt: skip


@app.get("/versions/{recipe}/{version}/review/{name}/pictures/{number}")
def review_picture(recipe: Name, version: Name, name: Name, number: Number) -> Response:
    """The picture of an item."""
    from curation.review.sets import read_item, read_set
    from curation.ui.pages import PICTURE_HEADERS

    item = found(lambda: read_item(store(), read_set(store(), recipe, version, name), number))
    return Response(item.picture, media_type=item.media_type, headers=PICTURE_HEADERS)


@app.post(
    "/versions/{recipe}/{version}/review/{name}",
    dependencies=[Depends(requires_access_dag(method="PUT", param_dag_id="review")), Depends(from_our_own_page)],
)
async def rated(recipe: Name, version: Name, name: Name, user: GetUserDep, request: Request) -> RedirectResponse:
    """Keep a rating and show the next sample."""
    from curation.errors import ConfigError
    from curation.review.ratings import NAMES, rate
    from curation.review.sets import read_set
    from curation.ui.pages import address

    form = await form_of(request)
    drawn = found(lambda: read_set(store(), recipe, version, name))
    given = {dimension: int(form[dimension]) if form.get(dimension, "").isdecimal() else None for dimension in NAMES}
    if not any(given.values()):
        raise HTTPException(400, "nothing is rated: choose at least one value")
    try:
        item = int(form.get("item", ""))
        rate(store(), drawn, {"rater": user.get_name(), "item": item, "comment": form.get("comment", ""), **given})
    except (ValueError, ConfigError) as err:
        raise HTTPException(400, str(err)) from err
    return RedirectResponse(address("versions", recipe, version, "review", name), status_code=303)


@app.get("/takedown", response_class=HTMLResponse)
def takedown(run: Annotated[str, Query(max_length=200)] = "") -> HTMLResponse:
    """Ask for what is to be taken down."""
    from curation.ui.takedowns import KINDS, receipts

    return answered("takedown", kinds=KINDS, run=run, receipts=receipts(store()))


@app.post(
    "/takedown",
    dependencies=[
        Depends(requires_access_dag(method="POST", access_entity=DagAccessEntity.RUN, param_dag_id="takedown")),
        Depends(from_our_own_page),
    ],
)
async def file_takedown(user: GetUserDep, request: Request) -> RedirectResponse:
    """Start the DAG: it counts what would go, and waits for a person's yes."""
    from curation_trigger import trigger
    from starlette.concurrency import run_in_threadpool

    from curation.errors import ConfigError
    from curation.ui.pages import address
    from curation.ui.takedowns import request_of

    try:
        conf = request_of(await form_of(request))
    except ConfigError as err:
        raise HTTPException(400, str(err)) from err
    run = await run_in_threadpool(trigger, "takedown", conf, user.get_name())
    return RedirectResponse(f"{address('takedown')}?{urlencode({'run': run})}", status_code=303)


def warm_up() -> None:
    """Load what pages need, so that the first who looks doesn't wait for it."""
    from importlib import import_module

    from curation.ui.pages import load_templates

    for name in WARM:
        import_module(name)
    load_templates()
    store()


class CurationPages(AirflowPlugin):
    """Mount the pages and show them under Browse."""

    name = "curation_pages"
    fastapi_apps = [{"app": app, "url_prefix": ROOT, "name": "curation"}]  # noqa: RUF012  Airflow's form
    external_views = [  # noqa: RUF012
        {"name": "Curation", "href": f"{ROOT}/", "destination": "nav", "category": "browse", "url_route": "curation"}
    ]

    @classmethod
    def on_load(cls, *args: Any, **kwargs: Any) -> None:
        """Begin to load while the API server starts; tasks load plugins too, and need no pages."""
        if "api-server" in sys.argv:
            Thread(target=warm_up, name="curation-warm-up", daemon=True).start()
