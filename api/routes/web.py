"""The status pages: HTML shells that small ES modules fill from the JSON API.

A browser pastes its API key once; it travels on in a cookie that scripts cannot read (HttpOnly) and other sites cannot
send (SameSite=Strict), so the JSON API may take it in place of a Bearer header. Every URL in a page is relative, so the
pages work below any path that a proxy gives them. Nothing is fetched from elsewhere: the Content-Security-Policy
forbids it, and plotly.min.js comes out of the installed `plotly` wheel.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.staticfiles import StaticFiles

from api.auth import COOKIE, principal_of
from api.web import modules, settings_form
from jenga_core.errors import AuthenticationError
from jenga_core.service.accounts.keys import Principal, Scope, authenticate
from jenga_core.service.db.models import Job, Team

COOKIE_SECONDS = 90 * 24 * 3600

_PAGE_HEADERS = {
    # Plotly writes style attributes, hence 'unsafe-inline' for styles; scripts come from our own files only.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
_PLOTLY = f"plotly-{version('plotly')}.min.js"
_NEXT_PAGE = re.compile(r"(jobs/[\w-]+|compare|storage|predictors|fleet|keys)?(\?[\w=&.:-]*)?")
"""Where the login form may lead: our own pages, below this one."""


_templates = Jinja2Templates(
    env=Environment(
        loader=FileSystemLoader(modules.STATIC.parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
)
_templates.env.globals["modules_behind"] = modules.imported_by
_static = StaticFiles(directory=modules.STATIC)
_plotly = StaticFiles(packages=[("plotly", "package_data")])

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@router.get("/")
def jobs_page(request: Request) -> Response:
    """All jobs of the team."""
    return _page_of(request, "jobs.html", here="", root="./")


@router.get("/jobs/new")
def new_job_page(request: Request) -> Response:
    """A form for a job, with what it will need; `?from=JOB` fills it with another job's settings."""
    return _page_of(
        request,
        "new.html",
        here="jobs/new",
        root="../",
        sections=settings_form.sections(),
        defaults=settings_form.defaults(),
        help_of=settings_form.help_of,
    )


@router.get("/jobs/{job_id}")
def job_page(request: Request, job_id: str) -> Response:
    """One job: progress, loss, memory beside dense, kept blocks, events, downloads."""
    principal = _principal(request)
    if principal is not None:
        with request.app.state.database.reading() as session:
            job = session.get(Job, job_id)
        if job is None or job.team_id != principal.team_id:
            return _page_of(request, "missing.html", here="jobs", root="../", status=404, job_id=job_id)
    return _page_of(request, "job.html", here=f"jobs/{job_id}", root="../", job_id=job_id, plotly=_PLOTLY)


@router.get("/compare")
def compare_page(request: Request) -> Response:
    """Two or more jobs side by side; `?job=ID&job=ID` names them."""
    return _page_of(request, "compare.html", here="compare", root="./", plotly=_PLOTLY)


@router.get("/storage")
def files_page(request: Request) -> Response:
    """Models, and the team's files. Not at /files, where a client lands whose base URL lacks /v1."""
    return _page_of(request, "files.html", here="storage", root="./")


@router.get("/predictors")
def predictors_page(request: Request) -> Response:
    """The team's predictors of block scores, and how well they do."""
    return _page_of(request, "predictors.html", here="predictors", root="./")


@router.get("/fleet")
def fleet_page(request: Request) -> Response:
    """Machines and devices, who holds them, who waits, and each team's share."""
    return _page_of(request, "fleet.html", here="fleet", root="./")


@router.get("/keys")
def keys_page(request: Request) -> Response:
    """The team's API keys."""
    return _page_of(request, "keys.html", here="keys", root="./")


@router.get("/login")
def login_page(request: Request, next_page: Annotated[str, Query(alias="next")] = "") -> Response:
    """The form in which the key is pasted."""
    return _page(request, "login.html", root="./", next_page=next_page, error=None)


@router.post("/login")
def login(
    request: Request, key: Annotated[str, Form()] = "", next_page: Annotated[str, Form(alias="next")] = ""
) -> Response:
    """Check the key, keep it in the cookie, and go on to the page that was asked for."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        message = "This form was sent from another site. Paste the key here instead."
        return _page(request, "login.html", root="./", status=403, next_page="", error=message)
    state = request.app.state
    try:
        with state.database.reading() as session:
            authenticate(session, key.strip(), pepper=state.settings.pepper)
    except AuthenticationError as error:
        return _page(request, "login.html", root="./", status=401, next_page=next_page, error=error.message)
    response = RedirectResponse(f"./{next_page if _NEXT_PAGE.fullmatch(next_page) else ''}", status_code=303)
    response.set_cookie(COOKIE, key.strip(), max_age=COOKIE_SECONDS, **_cookie_scope(request))
    return response


@router.post("/logout")
def logout(request: Request) -> Response:
    """Forget the key in this browser. The key itself stays valid."""
    response = RedirectResponse("login", status_code=303)
    response.delete_cookie(COOKIE, **_cookie_scope(request))
    return response


@router.get("/static/{name}")
async def static_file(request: Request, name: str) -> Response:
    """Our own modules, styles and icon (revalidated by ETag), and plotly (never changes under its versioned name)."""
    if name == _PLOTLY:
        response = await _plotly.get_response("plotly.min.js", request.scope)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    else:
        response = await _static.get_response(name, request.scope)
        response.headers["Cache-Control"] = "no-cache"
    return response


def missing_page(request: Request) -> Response:
    """For an address that leads nowhere; whoever is logged in keeps the way to everything else."""
    principal = _principal(request)
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    root = "../" * (path.count("/") - 1) or "./"
    account = None if principal is None else _account(request, principal)
    return _page(request, "missing.html", here=None, root=root, status=404, account=account, job_id=None)


def _principal(request: Request) -> Principal | None:
    """Whoever the cookie stands for; None without one, or when its key was revoked."""
    try:
        return principal_of(request, request.app.state.database, request.app.state.settings.pepper)
    except AuthenticationError:
        return None


def _to_login(request: Request, *, root: str, next_page: str = "") -> Response:
    """Ask for the key, unless the browser withheld the cookie only because a link on another site led here.

    Such a visit is answered with a page that reloads itself: the second request comes from our own page, so a
    SameSite=Strict cookie is sent with it, if there is one.
    """
    if request.headers.get("sec-fetch-site") == "cross-site":
        return _page(request, "again.html", root=root, next_page=next_page)
    return RedirectResponse(f"{root}login" + (f"?next={quote(next_page)}" if next_page else ""), status_code=303)


def _page_of(request: Request, template: str, *, here: str, root: str, status: int = 200, **context: Any) -> Response:
    """A page of a team, for whoever has a key; others are asked for one first, and led back `here`."""
    principal = _principal(request)
    if principal is None:
        query = f"?{request.url.query}" if request.url.query else ""
        return _to_login(request, root=root, next_page=here + query)
    context |= {"account": _account(request, principal), "needs_write": _needs_write(principal)}
    return _page(request, template, here=here, root=root, status=status, **context)


def _needs_write(principal: Principal) -> dict[str, str]:
    """Attributes of a button that changes something: disabled, with the reason, where the key may only read."""
    if principal.may(Scope.WRITE):
        return {}
    return {"disabled": "", "title": f"This needs a key with the scope write; {principal.key_name} may only read"}


def _account(request: Request, principal: Principal) -> str:
    """The team and the key, in words."""
    with request.app.state.database.reading() as session:
        return f"{session.get_one(Team, principal.team_id).name} · {principal.key_name}"


def _page(
    request: Request, template: str, *, status: int = 200, account: str | None = None, **context: Any
) -> Response:
    """The page, with the script of the same name if there is one."""
    script = f"{Path(template).stem}.js"
    context["script"] = script if (modules.STATIC / script).exists() else None
    context["account"] = account
    return _templates.TemplateResponse(request, template, context, status_code=status, headers=_PAGE_HEADERS)


def _cookie_scope(request: Request) -> dict[str, Any]:
    """Attributes that setting and clearing the cookie must share."""
    return {
        "path": request.scope.get("root_path") or "/",
        "secure": request.url.scheme == "https",
        "httponly": True,
        "samesite": "strict",
    }
