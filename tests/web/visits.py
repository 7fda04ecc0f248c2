"""A visitor: a logged-in browser page, what its console complained about, and what axe finds on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, FloatRect, Locator, Page, expect

TIMEOUT_MILLISECONDS = 20_000
SERIOUS = ("serious", "critical")


@dataclass
class Visit:
    """A page of the service at `url`, which ends with a slash."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str = "") -> None:
        """Go to a path of the service."""
        self.page.goto(self.url + path)

    def log_out(self) -> None:
        """What the page had asked just before is answered with 401, and the browser says so; that is no complaint."""
        before = len(self.complaints)
        self.page.get_by_role("button", name="Log out").click()
        expect(self.page.get_by_label("API key")).to_be_visible()
        self.complaints[before:] = [said for said in self.complaints[before:] if "401 (Unauthorized)" not in said]

    def log_in(self, key: str) -> None:
        """Paste the key into the form that is shown."""
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Log in").click()

    def serious_faults(self) -> list[str]:
        """What axe calls serious or critical on the page as it is: the rule, and the first element that breaks it."""
        violations = Axe().run(self.page).response["violations"]
        return [
            f"{found['id']}: {found['help']}; {found['nodes'][0]['html'][:160]}"
            for found in violations
            if found["impact"] in SERIOUS
        ]


@contextmanager
def visiting(browser: Browser, url: str, *, narrow: bool = False) -> Iterator[Visit]:
    """Wide and light, or narrow and dark. A console error or an uncaught exception fails the block at its end."""
    context = browser.new_context(
        viewport={"width": 400 if narrow else 1280, "height": 900}, color_scheme="dark" if narrow else "light"
    )
    context.set_default_timeout(TIMEOUT_MILLISECONDS)
    expect.set_options(timeout=TIMEOUT_MILLISECONDS)
    visit = Visit(context.new_page(), url)

    def heard(message: ConsoleMessage) -> None:
        if message.type == "error":
            visit.complaints.append(f"{message.text} ({message.location['url']})")

    visit.page.on("console", heard)
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    try:
        yield visit
    finally:
        context.close()
    assert not visit.complaints, visit.complaints


def fits(page: Page) -> bool:
    """Nothing makes the page scroll sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def box_of(node: Locator) -> FloatRect:
    """Where it is drawn, in CSS pixels."""
    box = node.bounding_box()
    assert box is not None
    return box
