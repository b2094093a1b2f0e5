"""Many tasks at once, a service that is away for a while, a browser that keeps nothing."""

from playwright.sync_api import Browser, Route

from tests.deployments.ingress.playground.conftest import Visit
from tests.deployments.ingress.playground.visitor import Visitor
from tests.serving import Served

BLOCKED = """for (const name of ["localStorage", "sessionStorage"])
    Object.defineProperty(window, name,
        { get() { throw new DOMException("no", "SecurityError"); } });
"""


def ready(visitor: Visitor) -> None:
    visitor.choose("sd15")
    visitor.field("prompt").fill("a red ball")


def test_more_tasks_than_a_browser_has_connections(served: Served, visit: Visit) -> None:
    visitor = visit(served.url + "/")
    ready(visitor)
    visitor.button("Video").click()
    visitor.field("num_frames").fill("32")
    visitor.field("num_inference_steps").fill("50")
    for count in range(1, 9):
        visitor.button("Generate").click()
        visitor.page.wait_for_function(
            "count => document.querySelectorAll('.queue .task').length == count", arg=count
        )
    other = Visitor(visitor.page.context.new_page())
    other.opens(served.url + "/")
    other.page.wait_for_function("() => document.querySelectorAll('.queue .task').length == 8")
    visitor.button("Cancel all 8").click()
    for one in (visitor, other):
        one.page.wait_for_function("() => !document.querySelector('.queue')", timeout=60_000)
    assert other.told == []


def test_a_404_of_somebody_else_loses_nothing(served: Served, visit: Visit) -> None:
    visitor = visit(served.url + "/")
    ready(visitor)

    def away(route: Route) -> None:
        route.fulfill(status=404, body="Not Found")

    visitor.page.route("**/v1/jobs/**", away)
    visitor.button("Generate").click()
    visitor.page.locator(".queue").get_by_text("trying again").wait_for()
    visitor.page.unroute("**/v1/jobs/**", away)
    visitor.waits_for(1)


def test_a_browser_that_keeps_nothing(served: Served, browser: Browser) -> None:
    context = browser.new_context()
    context.add_init_script(BLOCKED)
    visitor = Visitor(context.new_page())
    visitor.opens(served.url + "/")
    ready(visitor)
    visitor.generate()
    context.close()
    assert visitor.told == []


def test_a_file_that_says_what_it_likes(served: Served, visit: Visit) -> None:
    visitor = visit(served.url + "/")
    odd: list[object] = [{"size": 5}, {"loras": 5}, "x", {"controls": {}}, [3]]
    for said in odd:
        visitor.drops_with(said)
    visitor.page.get_by_role("img", name="Start picture 1").wait_for()


def test_a_held_key_asks_once(served: Served, visit: Visit) -> None:
    visitor = visit(served.url + "/")
    ready(visitor)
    asked: list[str] = []
    visitor.page.on("request", lambda one: asked.append(one.url) if one.method == "POST" else None)
    visitor.field("prompt").focus()
    visitor.page.keyboard.down("Control")
    for _ in range(5):
        visitor.page.keyboard.down("Enter")
    visitor.page.keyboard.up("Enter")
    visitor.page.keyboard.up("Control")
    visitor.waits_for(1)
    assert len([url for url in asked if url.endswith("/generations")]) == 1
