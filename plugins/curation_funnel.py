"""The funnel of every dump inside Airflow's navigation, behind its login: it renders, `curation.reports` computes."""

import os
from typing import Annotated, Any

import jinja2
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException, Path
from fastapi.responses import HTMLResponse

# alt texts and names of dumps come from strangers: nothing on the page may run
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}
PAGE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>curation</title><style>
:root { color-scheme: light dark } body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; max-width: 70rem }
table { border-collapse: collapse; width: 100% } th, td { padding: .3rem .7rem; text-align: left; vertical-align: top }
tr { border-bottom: 1px solid #8886 } .n { text-align: right; font-variant-numeric: tabular-nums }
</style></head><body>
{% if funnel %}<p><a href="./">all dumps</a></p>
<h1>{{ funnel.dump }} <small>{{ funnel.recipe }}</small></h1>
<p>{{ funnel.kept }} of {{ funnel.samples }} samples kept.</p>
<table><thead><tr><th>stage<th class="n">shards done<th class="n">in<th class="n">kept<th>dropped</tr></thead><tbody>
{% for s in funnel.stages %}<tr><td>{{ s.stage }}<td class="n">{{ s.shards_done }}/{{ funnel.shards | length }}
<td class="n">{{ s.rows_in }}<td class="n">{{ s.kept }}<td>{% for reason, count in s.reasons.most_common() %}
{{ reason }} {{ count }}{{ ", " if not loop.last }}{% endfor %}</tr>{% endfor %}</tbody></table>
{% else %}<h1>Dumps</h1>
<table><thead><tr><th>dump<th>recipe</tr></thead><tbody>
{% for dump, recipe in runs %}<tr><td><a href="{{ dump | urlencode }}--{{ recipe | urlencode }}">{{ dump }}</a>
<td>{{ recipe }}</tr>
{% else %}<tr><td colspan="2">nothing has run yet: trigger curate_block</tr>{% endfor %}</tbody></table>{% endif %}
</body></html>""")

app = FastAPI(title="curation", dependencies=[Depends(requires_access_dag(method="GET"))])


def store() -> Any:
    """Open the store that the tasks use; the import is heavy, and only requests need it."""
    from curation.store import Store

    return Store(os.environ.get("CURATION_STORE", "var/store"))


@app.get("/", response_class=HTMLResponse)
def dumps() -> HTMLResponse:
    """List everything that was ever planned."""
    from curation.block import runs

    return HTMLResponse(PAGE.render(funnel=None, runs=runs(store())), headers=HEADERS)


@app.get("/{dump}--{recipe}", response_class=HTMLResponse)
def funnel(
    dump: Annotated[str, Path(pattern=r"^[\w.-]+$")], recipe: Annotated[str, Path(pattern=r"^[\w.-]+$")]
) -> HTMLResponse:
    """Show what became of a dump's samples, stage by stage."""
    from curation.block import recipe_key
    from curation.dumps import archives_of
    from curation.errors import CurationError
    from curation.pipeline import saved_recipe
    from curation.reports.funnel import funnel as counted

    try:
        pinned = saved_recipe(store(), recipe_key(store(), dump, recipe))
        shards = range(len(archives_of(store(), dump, pinned.stages.extract.archive)))
        page = PAGE.render(funnel=counted(store(), pinned, dump, shards), runs=[])
    except CurationError as err:
        raise HTTPException(404, str(err)) from err
    return HTMLResponse(page, headers=HEADERS)


class CurationFunnel(AirflowPlugin):
    """Mount the pages and show them under Browse."""

    name = "curation_funnel"
    fastapi_apps = [{"app": app, "url_prefix": "/curation", "name": "curation"}]  # noqa: RUF012  Airflow's form
    external_views = [  # noqa: RUF012
        {"name": "Curation", "href": "/curation/", "destination": "nav", "category": "browse", "url_route": "curation"}
    ]
