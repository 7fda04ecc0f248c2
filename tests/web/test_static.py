"""The files behind the pages: served with the right types, from this machine only, and without HTML out of strings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import api
from api.web import modules
from tests.web.conftest import Site
from tests.web.seed import RUNNING

WEB = Path(api.__file__).parent / "web"
SOURCES = sorted(path for folder in ("templates", "static") for path in (WEB / folder).iterdir())
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@on_sqlite
def test_static_files_need_no_login_and_have_their_types(site: Site) -> None:
    served = [path for path in SOURCES if path.parent.name == "static"]
    assert {path.suffix for path in served} == set(TYPES)
    for path in served:
        response = site.client.get(f"/static/{path.name}")
        assert response.status_code == 200
        assert response.headers["content-type"].split(";")[0] == TYPES[path.suffix]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.content == path.read_bytes()
        again = site.client.get(f"/static/{path.name}", headers={"If-None-Match": response.headers["etag"]})
        assert again.status_code == 304


@on_sqlite
def test_plotly_comes_from_the_installed_wheel_and_stays_in_the_cache(site: Site) -> None:
    site.log_in()
    page = site.client.get(f"/jobs/{RUNNING}").text
    name = re.search(r"static/(plotly-[\d.]+\.min\.js)", page)
    assert name is not None
    response = site.client.get(f"/static/{name[1]}")
    assert response.headers["content-type"].startswith("text/javascript")
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert b"plotly.js v" in response.content[:200]


@on_sqlite
@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2Ftemplates%2Fbase.html", "%2e%2e%2f%2e%2e%2fapp.py", "plotly.min.js"]
)
def test_static_serves_nothing_else(site: Site, name: str) -> None:
    assert site.client.get(f"/static/{name}").status_code == 404


def test_sources_name_no_other_host_and_build_no_html() -> None:
    for path in SOURCES:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "").replace("http://HOST/v1", "")
        assert not re.search(r"https?://|//cdn|@import", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), path.name
        assert "|safe" not in text, path.name


def test_a_page_announces_every_module_behind_its_script() -> None:
    behind = modules.imported_by("job.js")
    assert len(behind) == len(set(behind)) and {"api.js", "chart.js", "format.js"} <= set(behind)
    imported = [
        name for path in modules.STATIC.glob("*.js") for name in re.findall(r'from "\./([^"]+)"', path.read_text())
    ]
    pages = [path.name for path in modules.STATIC.glob("*.js") if path.name not in imported]
    found = {name for page in pages for name in modules.imported_by(page)}
    assert found == set(imported)


@on_sqlite
def test_announced_modules_are_in_the_page(site: Site) -> None:
    site.log_in()
    page = site.client.get(f"/jobs/{RUNNING}").text
    assert '<link rel="modulepreload" href="../static/chart.js">' in page
    assert page.count('<script type="module" src="../static/job.js"></script>') == 1
