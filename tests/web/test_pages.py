"""Who may see which page, what the cookie is like, and what every page forbids its browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from jenga_core.config import JengaConfig
from jenga_core.service.db.base import database_now
from jenga_core.service.db.models import ApiKey
from jenga_core.service.db.session import Database
from tests.web.conftest import Site
from tests.web.seed import RUNNING

PATHS = ("/", "/jobs/new", f"/jobs/{RUNNING}", "/compare", "/storage", "/predictors", "/fleet", "/keys")


def test_pages_ask_for_the_key_first(site: Site) -> None:
    for path, login in (
        ("/", "./login"),
        (f"/jobs/{RUNNING}", f"../login?next=jobs/{RUNNING}"),
        ("/jobs/new?from=ftjob-1", "../login?next=jobs/new%3Ffrom%3Dftjob-1"),
        ("/compare?job=a&job=b", "./login?next=compare%3Fjob%3Da%26job%3Db"),
        ("/predictors", "./login?next=predictors"),
        ("/fleet", "./login?next=fleet"),
        ("/keys", "./login?next=keys"),
    ):
        response = site.client.get(path, follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (303, login)
    assert "API key" in site.client.get("/").text


def test_login_keeps_the_key_in_a_cookie_no_script_or_other_site_can_use(site: Site) -> None:
    response = site.client.post("/login", data={"key": f" {site.key}\n"}, follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (303, "./")
    value, *attributes = response.headers["set-cookie"].split("; ")
    assert value == f"jenga_key={site.key}"
    assert {"HttpOnly", "SameSite=strict", "Secure", "Path=/"} <= set(attributes)
    assert "Fine-tuning jobs" in site.client.get("/").text


def test_the_cookie_is_secure_only_over_https_and_scoped_to_the_mount(site: Site) -> None:
    plain = TestClient(site.client.app, base_url="http://jenga.test", root_path="/tools/jenga")
    cookie = plain.post("/tools/jenga/login", data={"key": site.key}, follow_redirects=False).headers["set-cookie"]
    assert "Secure" not in cookie
    assert "Path=/tools/jenga;" in cookie


@pytest.mark.parametrize("key", ["", "wrong", "jenga_0_0_00000000", "jenga_\N{SNOWMAN}"])
def test_a_wrong_key_is_refused_and_not_repeated(site: Site, key: str) -> None:
    response = site.client.post("/login", data={"key": key}, follow_redirects=False)
    assert response.status_code == 401
    assert 'role="alert"' in response.text
    assert "set-cookie" not in response.headers
    assert not key or f'"{key}"' not in response.text


def test_login_goes_on_to_the_job_that_was_asked_for_and_nowhere_else(site: Site) -> None:
    for asked, given in (
        (f"jobs/{RUNNING}", f"./jobs/{RUNNING}"),
        ("compare?job=ftjob-1&job=ftjob-2", "./compare?job=ftjob-1&job=ftjob-2"),
        ("keys", "./keys"),
        ("?after=ftjob-1", "./?after=ftjob-1"),
        ("https://evil.example", "./"),
        ("//evil.example", "./"),
        ("jobs/../../x", "./"),
        ("keys?next=//evil.example", "./"),
    ):
        response = site.client.post("/login", data={"key": site.key, "next": asked}, follow_redirects=False)
        assert response.headers["location"] == given


def test_login_from_another_site_is_refused(site: Site) -> None:
    headers = {"Sec-Fetch-Site": "cross-site"}
    response = site.client.post("/login", data={"key": site.key}, headers=headers, follow_redirects=False)
    assert response.status_code == 403
    assert "set-cookie" not in response.headers


def test_a_link_from_another_site_leads_to_a_page_that_comes_again(site: Site) -> None:
    response = site.client.get(f"/jobs/{RUNNING}", headers={"Sec-Fetch-Site": "cross-site"}, follow_redirects=False)
    assert response.status_code == 200
    assert f'content="0; url=../jobs/{RUNNING}"' in response.text


def test_logout_clears_the_cookie(site: Site) -> None:
    site.log_in()
    response = site.client.post("/logout", follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (303, "login")
    assert "Max-Age=0" in response.headers["set-cookie"]
    assert site.client.get("/", follow_redirects=False).status_code == 303


def test_a_revoked_key_opens_nothing(site: Site, database: Database) -> None:
    site.log_in()
    with database.writing() as session:
        session.execute(update(ApiKey).values(revoked_at=database_now()))
    assert site.client.get("/", follow_redirects=False).status_code == 303


def test_another_teams_job_is_missing(site: Site) -> None:
    site.log_in()
    assert site.client.get(f"/jobs/{RUNNING}").status_code == 200
    site.log_in(site.other_key)
    for job_id in (RUNNING, "ftjob-none", "<b>"):
        response = site.client.get(f"/jobs/{job_id}")
        assert response.status_code == 404
        assert "No such job" in response.text
        assert "<b>" not in response.text


@pytest.mark.parametrize("path", ["/nope", "/jobs/a/b", "/nope/"])
def test_a_browser_that_goes_nowhere_gets_a_page_and_a_program_json(site: Site, path: str) -> None:
    for expected in ('href="#main"', "Log out"):  # before and after logging in
        response = site.client.get(path, headers={"Accept": "text/html,*/*;q=0.8"})
        assert (response.status_code, response.headers["content-type"]) == (404, "text/html; charset=utf-8")
        assert "No such page" in response.text and expected in response.text
        assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        for url in _Page(response.text).urls:
            assert site.client.base_url.join(path).join(url).path in ("/", "/logout", *PATHS) or "/static/" in url
        site.log_in()
    answer = site.client.get(path)
    assert answer.json()["error"]["message"] == f"Not Found: there is no GET {path}"
    assert site.client.get("/v1/nope", headers={"Accept": "application/json"}).json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("path", [*PATHS, "/jobs/none", "/login"])
def test_every_page_forbids_foreign_and_inline_scripts(site: Site, path: str) -> None:
    site.log_in()
    response = site.client.get(path)
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert response.headers["cache-control"] == "no-store"
    page = _Page(response.text)
    assert page.inline_scripts == []
    assert page.unresolved == []


@pytest.mark.parametrize("path", [*PATHS, "/jobs/none", "/login"])
def test_pages_work_below_any_path(site: Site, path: str) -> None:
    """Every URL is relative, and leads to something when followed from the page's own address."""
    site.log_in()
    for url in _Page(site.client.get(path).text).urls:
        assert not re.match(r"/|[a-z]+:", url), url
        target = site.client.base_url.join(path).join(url)
        if target.path != "/logout":
            assert site.client.get(target).status_code == 200, url


def test_the_form_of_a_new_job_asks_for_every_setting_once(site: Site) -> None:
    """All of JengaConfig, with its docstrings as help: a setting that is added appears by itself."""
    site.log_in()
    page = site.client.get("/jobs/new").text
    for path in _paths(JengaConfig.preset("jenga-paper", rope={"type": "yarn"}).model_dump(mode="json")):
        assert page.count(f'data-path="{path}"') == 1, path
    assert "Blocks start at each document&#39;s first token." in page


def _paths(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name


class _Page(HTMLParser):
    """The URLs of a page, its inline scripts and handlers, and label or description ids that nothing answers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline_scripts: list[str] = []
        self._ids: set[str] = set()
        self._references: set[str] = set()
        self.feed(text)
        self.unresolved = sorted(self._references - self._ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._ids |= {given["id"]} if "id" in given else set()
        for name in ("for", "aria-labelledby", "aria-describedby"):
            self._references |= set(given.get(name, "").split())
        self.urls += [given[name] for name in ("href", "src", "action") if name in given and given[name][0] != "#"]
        if (tag == "script" and "src" not in given) or any(name.startswith("on") for name in given):
            self.inline_scripts.append(self.get_starttag_text() or tag)
