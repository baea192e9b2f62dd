"""Receives hooks: verifies that their server sent them, and publishes their jobs."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from starlette.requests import Request
from starlette.responses import Response

from otp_stream.asgi import json_response
from otp_stream.core.hook_signatures import SignatureError
from otp_stream.core.lenient_json import loads, read_integer
from otp_stream.core.sealing_keys import NO_KEYS
from otp_stream.request_body import Bodies

from .hooks import HOOKS, Fields, Hook, NoCodeError
from .problem import ProblemError
from .producers import Producer, Producers
from .requests import read_body
from .submitter import Submitter, read_job


class HookFailedError(Exception):
    """A hook that is refused, in the format in which its server reads errors."""

    def __init__(self, hook: Hook, problem: ProblemError) -> None:
        super().__init__(problem.detail)
        self._hook, self._problem = hook, problem

    def response(self) -> Response:
        """Return the response."""
        if self._hook.error is None:
            return self._problem.response()
        response = json_response(self._hook.error(self._problem.status, self._problem.detail), self._problem.status)
        response.headers.update(self._problem.headers)
        return response


@dataclass(frozen=True, slots=True)
class HookReceiver:
    """Receives hooks. `keys` returns the keys with which they are signed now, by the name of each hook that is on."""

    producers: Producers
    submitter: Submitter
    bodies: Bodies
    keys: Callable[[], Mapping[str, Sequence[bytes]]]

    def find(self, name: str) -> Hook | None:
        """Return a hook that is on: its key is set, or there are tokens, with which it authenticates itself."""
        hook = HOOKS.get(name)
        if hook is None or not (self.producers.tokens() if hook.read_signature is None else name in self.keys()):
            return None
        return hook

    async def receive(self, hook: Hook, request: Request, check_phase: Callable[[], None]) -> Response:
        """Publish the jobs of a hook, and return 200. Raises `HookFailedError`.

        The id of each job is made from the body: servers repeat it unchanged, some with another `webhook-id`.
        """
        try:
            producer, body = await self._authenticated(hook, request)
            check_phase()
            fields = _jobs(hook, body)
            key = f"{hook.name}:{sha256(body).hexdigest()}"
            await asyncio.gather(*(self._submit(it, producer, f"{key}:{number}") for number, it in enumerate(fields)))
        except ProblemError as problem:
            raise HookFailedError(hook, problem) from None
        return json_response({})

    async def _authenticated(self, hook: Hook, request: Request) -> tuple[Producer, bytes]:
        """Return the producer and the body, which is not read if its headers show that it must be refused."""
        if hook.read_signature is None:
            return self.producers.by_token(request), await read_body(request, self.bodies, is_known=True)
        try:
            signature = hook.read_signature(request.headers)
            body = await read_body(request, self.bodies, is_known=False)
            signature.verify(body, self.keys()[hook.name], time.time())
        except SignatureError as error:
            raise self.producers.refused(request, str(error)) from None
        name = f"hook {hook.name}"  # no token may have a name with a space
        self.producers.count(name)
        return Producer(name), body

    async def _submit(self, fields: Fields, producer: Producer, key: str) -> None:
        # a person waits for each of these codes
        job = read_job(json.dumps({**fields, "priority": "high"}).encode(), NO_KEYS)
        await self.submitter.submit(job, producer, key, {})


def _jobs(hook: Hook, body: bytes) -> list[Fields]:
    try:
        payload = loads(body, read_integer)  # a lone surrogate in a name, for example, costs no one the code
    except (ValueError, RecursionError):
        raise ProblemError(400, "body: is not valid JSON") from None
    try:
        return hook.jobs(payload)
    except NoCodeError as error:
        raise ProblemError(422, str(error)) from None
