"""What the curation pages share: how an answer is given, and who is let through."""

import os
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

from fastapi import HTTPException, Path, Query, Request
from fastapi.responses import HTMLResponse

Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=128)]
Number = Annotated[int, Path(ge=0, le=1 << 31)]
Similarity = Annotated[str, Query(pattern=r"^$|^-?(\d{1,2}(\.\d{0,20})?|\.\d{1,20})(e-\d{1,2})?$", max_length=32)]
_FORM_BYTES = 1 << 16


def store() -> Any:
    """Open the store that the tasks use; the import is heavy, and only requests need it."""
    from curation.store import Store

    return Store(os.environ.get("CURATION_STORE", "var/store"))


def answered(template: str, /, **values: Any) -> HTMLResponse:
    """A page; one that has nothing to show yet is asked for again by the browser."""
    from curation.ui.counting import Counted
    from curation.ui.pages import HEADERS, render

    waits = any(isinstance(value, Counted) and value.value is None for value in values.values())
    return HTMLResponse(render(template, **values), headers=HEADERS | ({"Refresh": "1"} if waits else {}))


def found(read: Callable[[], Any]) -> Any:
    """What is asked for; 404 with the reason when it is not there, 503 when the store does not answer."""
    from curation.errors import CurationError, OutageError

    try:
        return read()
    except OutageError as err:
        raise HTTPException(503, str(err)) from err
    except CurationError as err:
        raise HTTPException(404, str(err)) from err


def from_our_own_page(request: Request) -> None:
    """Refuse what another site's page makes a browser send."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if (site not in (None, "same-origin")) or (site is None and foreign):
        raise HTTPException(403, "sent from a page of another site")


async def form_of(request: Request) -> dict[str, str]:
    """Fields of a posted form, the last value of each."""
    body = await request.body()
    if len(body) > _FORM_BYTES:
        raise HTTPException(413, "the form is too long")
    return {key: values[-1] for key, values in parse_qs(body.decode("utf-8", "replace")).items()}
