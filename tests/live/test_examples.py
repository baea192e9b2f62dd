"""The applications in examples/, with RabbitMQ, a worker and a relay."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPCookieProcessor, OpenerDirector, build_opener

from conftest import Stage
from rabbitmq import free_port, until

EXAMPLES = Path(__file__).parents[2] / "examples"


class Browser:
    """Sends forms to an application, with its cookies."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self.path = "/"
        """Where the last answer is from, after redirects."""
        self._opener: OpenerDirector = build_opener(HTTPCookieProcessor(CookieJar()))

    async def get(self, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
        """Return status and body, or status 0 if nothing listens. With `form`, send it."""
        return await asyncio.to_thread(self._get, path, urlencode(form).encode() if form else None)

    def _get(self, path: str, content: bytes | None) -> tuple[int, str]:
        try:
            with self._opener.open(self._url + path, content, timeout=20) as answer:
                self.path = urlsplit(answer.url).path
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""


@asynccontextmanager
async def running(stage: Stage, *command: str) -> AsyncIterator[Browser]:
    """Run an application at a free port until it answers; `{port}` in the command is the port."""
    port = free_port()
    env = os.environ | {
        "RABBITMQ_URL": stage.url,
        "RABBITMQ_QUEUE_NAME": stage.rabbit.queue,
        "RABBITMQ_PREFIX": stage.rabbit.prefix,
    }
    words = [it.format(port=port) for it in command]
    process = await asyncio.create_subprocess_exec(sys.executable, *words, cwd=EXAMPLES, env=env)
    browser = Browser(port)

    async def answers() -> bool:
        assert process.returncode is None
        return (await browser.get("/"))[0] == 200

    try:
        await until(answers, "the form", 40)
        yield browser
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)


async def test_the_fastapi_application_shows_what_became_of_a_code(stage: Stage) -> None:
    stage.relay.always("rcpt", "550 5.1.1 no such user", to="typo@example.com")
    await stage.run()
    async with running(stage, "-m", "uvicorn", "fastapi_login:app", "--port", "{port}") as browser:
        for email, text in (("ada@example.com", "on its way"), ("typo@example.com", "is refused")):
            assert (await browser.get("/codes", {"email": email}))[0] == 200
            path = browser.path

            async def shown(path: str = path, text: str = text) -> bool:
                return text in (await browser.get(path))[1]

            await until(shown, text, 20)
        assert (await browser.get("/codes", {"email": "ada"}))[0] == 422
        assert (await browser.get("/codes/other"))[0] == 404
    assert [it.recipient for it in stage.relay.accepted] == ["ada@example.com"]


async def test_the_django_application_shows_what_became_of_a_code(stage: Stage) -> None:
    stage.relay.always("rcpt", "550 5.1.1 no such user", to="typo@example.com")
    command = ("django_login.py", "runserver", "--noreload", "127.0.0.1:{port}")
    async with running(stage, *command) as browser:
        (token,) = re.findall(r'value="(\w+)"', (await browser.get("/"))[1])

        async def post(email: str) -> tuple[int, str]:
            return await browser.get("/", {"email": email, "csrfmiddlewaretoken": token})

        assert (await post("ada@example.com"))[0] == 503  # no worker has declared the events
        await stage.run()
        for email, expected, text in (
            ("ada@example.com", 200, "on its way"),
            ("typo@example.com", 200, "is refused"),
            ("ada", 422, "no e-mail address"),
        ):
            status, body = await post(email)
            assert (status, text in body) == (expected, True), body
    assert [it.recipient for it in stage.relay.accepted] == ["ada@example.com"]
