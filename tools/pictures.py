"""Take the pictures of the operations page that docs/operations.md shows: `make pictures`, about five minutes.

A worker with traffic, on a private RabbitMQ, is brought into each state in turn.
"""

import asyncio
import random
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from browser import open_browser, resize, save_screenshot
from selenium import webdriver

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from amqp_proxy import amqp_proxy  # noqa: E402
from conftest import Stage, set_stage  # noqa: E402
from rabbitmq import Node  # noqa: E402
from smtp_relay import Act  # noqa: E402
from worker import job  # noqa: E402

IMAGES = ROOT / "docs" / "images"
PEOPLE = ("ada", "grace", "alan", "barbara", "edsger", "katherine", "linus", "margaret")
PLACES = ("example.com", "example.org", "example.net")


async def main() -> None:
    """Bring a worker into each state, and take a picture."""
    node = Node(Path(tempfile.mkdtemp(prefix="otp-rabbit-")))
    try:
        node.start()
        await _take_all(node.url, tempfile.mkdtemp(prefix="otp-pictures-"))
    finally:
        node.remove()


async def _take_all(broker: str, folder: str) -> None:
    names = "service_send_otp", "otp"
    async with set_stage(broker, Path(folder), names=names) as stage, amqp_proxy(stage.url) as (proxy, url):
        browser = await asyncio.to_thread(open_browser, folder)
        try:
            worker = await stage.run(url=url, SMTP_POOL_SIZE="10", HEARTBEAT_INTERVAL_MS="5000")
            page = f"http://127.0.0.1:{worker.port}/"
            traffic = asyncio.create_task(_publish(stage))
            stage.relay.always("body", Act(delay_s=0.08))
            stage.relay.always("rcpt", "550 5.1.1 no such user", to="nobody@example.org")
            await asyncio.sleep(100)
            await _take(browser, page, "page-healthy", "light", 1400)
            await stage.relay.stop()
            await asyncio.sleep(20)
            await _take(browser, page, "page-relay-down", "light", 1000)
            await stage.relay.start()
            stage.relay.always("body", Act(delay_s=2))
            await asyncio.sleep(50)
            await _take(browser, page, "page-backlog", "dark", 1000)
            stage.relay.always("body", Act(delay_s=0.02))
            await asyncio.sleep(30)
            proxy.refuse = True
            proxy.cut()
            await asyncio.sleep(10)
            await _take(browser, page, "page-broker-away", "light", 1000)
            traffic.cancel()
        finally:
            browser.quit()


async def _publish(stage: Stage) -> None:
    """Publish as a few producers do; now and then a job is malformed."""
    number = 0
    with suppress(asyncio.CancelledError):
        while True:
            number += 1
            address = f"{random.choice(PEOPLE)}@{random.choice(PLACES)}"  # noqa: S311
            known = {"jobId": f"login-{48_000 + number}", "timestamp": time.time_ns() // 1_000_000}
            body = job("nobody@example.org" if number % 400 == 0 else address, **known)
            await stage.rabbit.publish(body if number % 700 else b'{"email": "ada@example.com", "otp": 480213}')
            await asyncio.sleep(random.expovariate(20))


async def _take(browser: webdriver.Chrome, url: str, name: str, scheme: str, height: int) -> None:
    def take() -> None:
        resize(browser, 1120, height)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(url)
        save_screenshot(browser, IMAGES / f"{name}.webp")

    await asyncio.to_thread(take)


if __name__ == "__main__":
    asyncio.run(main())
