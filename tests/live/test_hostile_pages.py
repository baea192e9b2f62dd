"""Texts of producers, relays and other programs stay text on every page."""

from html.parser import HTMLParser

from conftest import Stage
from rabbitmq import until
from redis_server import RedisServer
from visitor import TOKEN, Visitor
from worker import job

MARKUP = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>"
PATHS = ("/", "/dead", "/templates", "/asyncapi", "/login")


class Tags(HTMLParser):
    """The names of all elements and attributes of a page, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names = set[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {tag, *(name for name, _ in attrs)}


async def test_texts_of_strangers_are_no_markup_on_any_page(stage: Stage, redis: RedisServer) -> None:
    stage.relay.always("rcpt", f"550 5.1.1 {MARKUP}", to="no@example.com")
    stage.relay.then("rcpt", f"451 4.3.0 {MARKUP}")
    worker = await stage.run(HTTP_TOKEN=TOKEN, REDIS_URL=redis.url, MAX_RETRIES="0")
    hostile = {"tenant": MARKUP, "purpose": MARKUP, "userName": MARKUP, "locale": MARKUP, "template": MARKUP}
    await stage.rabbit.publish(
        job("late@example.com", jobId=MARKUP, priority=MARKUP, metadata=hostile),
        job("no@example.com", jobId=MARKUP, metadata=hostile | {"template": "otp"}),
        MARKUP.encode(),
    )
    for key, value in (("reason", MARKUP), ("error", MARKUP), ("job-id", MARKUP), ("template", MARKUP)):
        await stage.rabbit.publish(job(), to=f"{stage.rabbit.prefix}.dead", headers={f"x-otp-{key}": value})

    async def dead() -> bool:
        return await stage.rabbit.depth(f"{stage.rabbit.prefix}.dead") == 7

    await until(dead, "seven dead letters")
    visitor = Visitor(worker)
    pages = [visitor.get(path) for path in PATHS]
    assert visitor.ask("/login", token=TOKEN)[0] == 303
    pages += [visitor.get(path) for path in PATHS]
    assert "alert(1)" in "".join(pages)  # the relay's reply is shown
    for page in pages:
        assert Tags(page).names.isdisjoint({"img", "onerror"})
        assert "<script>alert" not in page
