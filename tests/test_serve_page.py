"""The server's page in a real browser: a file dropped, its answer seen, an error seen, by keys and on a telephone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from conftest import barriers, in_a_browser
from test_serve import GREEN, RED, Colours, Remembering, knowing, listening, picture
from topwork.serve import Limits

pytestmark = in_a_browser

DROP = """([data, name]) => {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name));
    const event = type => new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true});
    for (const type of ["dragover", "drop"]) document.getElementById("drop").dispatchEvent(event(type));
}"""


@contextmanager
def opened(browser: Any, model: Colours, *, width: int = 1280, scheme: str = "light", **options: Any) -> Iterator[Any]:
    """The page of a server of its own; but for answers that are errors, nothing may be complained of."""
    with listening(model, learnt=Remembering(), **options) as at:
        # No rule against scripts that are handed in: axe is one. The page itself obeys it in the first test.
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
        complaints: list[str] = []
        page = context.new_page()
        page.on("console", lambda m: None if "Failed to load resource" in m.text else complaints.append(m.text))
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith((f"http://{at[0]}:{at[1]}/", "data:", "blob:")) else
                complaints.append(r.url))  # fmt: skip
        page.goto(f"http://{at[0]}:{at[1]}/")
        yield page
        context.close()
        assert complaints == []


def give(page: Any, *files: tuple[str, bytes]) -> None:
    page.set_input_files("#files", [{"name": n, "mimeType": "image/png", "buffer": d} for n, d in files])


def test_it_obeys_its_own_rules(browser: Any) -> None:
    """With the policy in force, the page asks, shows and draws; nothing is blocked."""
    with listening(knowing()) as at:
        page = browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda m: complaints.append(m.text))
        page.goto(f"http://{at[0]}:{at[1]}/")
        give(page, ("r.png", RED))
        page.locator(".answer", has_text="red").wait_for()
        page.locator(".looked input").check()
        assert page.locator(".heat").is_visible() and page.locator(".picture").is_visible()
        page.close()
    assert complaints == []


def test_a_file_that_is_dropped_is_answered(browser: Any) -> None:
    from base64 import b64encode

    with opened(browser, knowing()) as page:
        page.get_by_text("Up to 32 MB each").wait_for()
        page.evaluate(DROP, [b64encode(GREEN).decode(), "g.jpg"])
        card = page.locator("#results > li")
        card.locator(".answer", has_text="green").wait_for()
        assert card.locator(".bar").count() == 3
        assert card.locator("figcaption").inner_text() == "g.jpg"
        assert card.locator(".near li").all_inner_texts() == ["red, alike 90.0%", *["green, alike 50.0%"] * 3]
        assert not card.locator(".unknown").is_visible()
        assert page.locator("#status").inner_text() == "Done."


def test_what_cannot_be_answered_is_told_and_the_others_are_not_lost(browser: Any) -> None:
    with opened(browser, knowing(), limits=Limits(image_bytes=3000)) as page:
        give(
            page, ("w.png", picture((255, 255, 255))), ("no.png", b"no image"), ("big.png", bytes(4000)), ("r.png", RED)
        )
        page.locator("#status", has_text="Done.").wait_for()
        said = {c.locator("figcaption").inner_text(): c for c in page.locator("#results > li").all()}
        assert said["r.png"].locator(".answer").inner_text().startswith("red")
        assert "not an image" in said["no.png"].locator(".wrong").inner_text()
        assert "too large" in said["big.png"].locator(".wrong").inner_text()
        assert "none of these" in said["w.png"].locator(".unknown").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_clean_in_both_schemes_and_at_both_widths(browser: Any, scheme: str, width: int) -> None:
    with opened(browser, knowing(), width=width, scheme=scheme) as page:
        give(page, ("r.png", RED), ("w.png", picture((255, 255, 255))), ("no.png", b"no image"))
        page.locator("#status", has_text="Done.").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert barriers(page) == []


def test_it_is_used_by_keys(browser: Any) -> None:
    with opened(browser, knowing()) as page:
        give(page, ("r.png", RED))
        page.locator("#status", has_text="Done.").wait_for()
        reached = set()
        for _ in range(8):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.parentElement.className"))
        assert reached >= {"files", "camera", "looked"}
        page.locator(".looked input").focus()
        page.keyboard.press("Space")
        assert page.locator(".heat").is_visible()


def test_the_key_is_asked_for(browser: Any) -> None:
    with opened(browser, knowing(), key="secret") as page:
        page.locator("#key").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("That is not the key.").wait_for()
        page.locator("#key").fill("secret")
        page.keyboard.press("Enter")
        page.get_by_text("Up to 32 MB each").wait_for()
        assert not page.locator("#key").is_visible()
        give(page, ("r.png", RED))
        page.locator(".answer", has_text="red").wait_for()
