"""No marked secret gets out of the worker, on any path, through any channel, in any encoding.

tests/leak_scene.py has the channels and where secrets may be, tests/leak_jobs.py the messages, tests/leak_marks.py what
the relays quote, tests/leak_search.py the encodings. `make faults` runs it; `FAULTS_SEED` changes the messages.
"""

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from conftest import LONG
from leak_scene import Scene, leak_scene
from leak_search import marked
from smtp_relay import SILENCE
from worker import job

JOBS = int(os.environ.get("FAULTS_LEAK_JOBS", "10000" if LONG else "800"))
SEED = int(os.environ.get("FAULTS_SEED", "1"))
CHANNELS = (
    "log", "telemetry", "metrics", "pages", "events", "headers", "commands", "Redis", "RabbitMQ", "files", "processes",
)  # fmt: skip
DEAD_LETTERS = ("dead list --each", "dead export")
PLANTED_IN = {"library": "log", "traceback": "log"}
"""The channel of a planted leak with another name."""


async def _relay_away(scene: Scene) -> None:
    await scene.relays[0].stop()
    await scene.relays[1].wait_accepted(1)
    await scene.relays[0].start()


async def _broker_cut(scene: Scene) -> None:
    scene.proxy.cut()


async def _redis_away(scene: Scene) -> None:
    scene.redis.kill()
    await asyncio.sleep(0.5)
    await asyncio.to_thread(scene.redis.start)


async def _worker_killed(scene: Scene) -> None:
    await scene.workers[0].kill()
    await scene.workers[0].start()


async def _login_refused(scene: Scene) -> None:
    password = scene.marks.smtp_password
    scene.relays[0].then("auth", f"535 5.7.8 wrong password {password}", f"454 4.7.0 {password} cannot be checked")
    scene.relays[0].cut()


async def _files_broken(scene: Scene) -> None:
    """Make each file that the worker reads again one that it refuses, and quote a secret in it."""
    secret = scene.marks.tenant_password
    files = {
        Path(scene.env["TENANTS_FILE"]): f'[tenants."shop"]\nsmtp_host = "{secret}\nsmtp_pass = {secret}',
        Path(scene.env["SMTP_PASS_FILE"]): f"{secret}\n{secret}",
        Path(scene.env["TEMPLATES_DIR"], "subject", "body.txt"): "{{ otp|unknown }}",
    }
    before = {path: path.read_text() for path in files}
    for path, content in files.items():
        path.write_text(content)
    running = [worker for worker in scene.workers if worker.is_running]
    for worker in running:
        worker.signal(signal.SIGHUP)
    for worker in running:
        await worker.wait_log("templates have changed and cannot be used")
    for path, content in before.items():
        path.write_text(content)


FAULTS: tuple[Callable[[Scene], Awaitable[None]], ...] = (
    _relay_away, _broker_cut, _redis_away, _worker_killed, _login_refused, _files_broken,
)  # fmt: skip


async def test_no_secret_leaks_on_any_path(tmp_path: Path) -> None:
    async with leak_scene(tmp_path, SEED) as scene:
        await asyncio.gather(scene.run(), scene.run(NODE_ENV="development"))
        for relay in scene.relays:
            relay.share = 0.2
        publishing = asyncio.create_task(scene.publish(scene.messages(JOBS)))
        for fault in FAULTS:
            await asyncio.sleep(0.5)
            await fault(scene)
        await publishing
        for relay in scene.relays:
            relay.share = 0.05
        await scene.ended()
        await scene.look()
        assert {name for name, output in scene.outputs.items() if output.strip()} >= set(CHANNELS) - {"files"}
        assert scene.leaks() == {}


async def test_no_code_is_at_rest_if_producers_seal_it(tmp_path: Path) -> None:
    planted = marked(20)
    async with leak_scene(tmp_path, SEED) as scene:
        scene.sealed = True
        await scene.run()
        for relay in scene.relays:
            relay.share = 0.3
        await scene.publish(scene.messages(300))
        await scene.ended()
        await scene.look(DEAD_LETTERS)
        await scene.rabbit.publish(job(otp=planted))  # a producer that does not seal, and no worker
        assert scene.leaks() == {}
        scene.see("RabbitMQ", *(it.read_bytes() for it in scene.node.folder.rglob("*") if it.is_file()))
        found = scene.leaks({"planted": planted})
        assert {(channel, leak.secret) for channel, leaks in found.items() for leak in leaks} == {
            ("RabbitMQ", "planted")
        }


async def test_a_crash_writes_no_secret_to_a_file(tmp_path: Path) -> None:
    planted = marked(24)
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        async with leak_scene(tmp_path, SEED) as scene:
            worker = await scene.run(PYTHONFAULTHANDLER="1")  # its traceback is in the log
            scene.relays[0].always("body", SILENCE)
            await scene.publish(scene.messages(100))
            await scene.relays[0].wait(lambda: scene.relays[0].contents > 0, "content")
            assert worker.process is not None
            assert resource.prlimit(worker.process.pid, resource.RLIMIT_CORE) == (1, 1)  # even a pipe gets one byte
            worker.signal(signal.SIGSEGV)
            assert await worker.stopped() == -signal.SIGSEGV
            await scene.look(DEAD_LETTERS)
            assert "Segmentation fault" in worker.log
            assert scene.leaks() == {}
            # a process that does not forbid core dumps
            crash = f"import os, signal; it = {planted!r}.upper(); os.kill(os.getpid(), signal.SIGSEGV)"
            await (await asyncio.create_subprocess_exec(sys.executable, "-c", crash, cwd=worker.folder)).wait()
            cores = list(worker.folder.glob("core*"))
            if cores:  # elsewhere, the limit above is what shows that the worker writes none
                scene.see("files", *(it.read_bytes() for it in cores))
                assert {leak.secret for leak in scene.leaks({"planted": planted})["files"]} == {"planted"}
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


async def test_a_leak_in_each_channel_is_found(tmp_path: Path) -> None:
    planted = {name: marked(20) for name in (*CHANNELS, *PLANTED_IN)}
    async with leak_scene(tmp_path, SEED) as scene:
        tests = str(Path(__file__).parent.parent)
        await scene.run("leaky:app", SEALING_KEYS="", LEAKS=json.dumps(planted), PYTHONPATH=tests)
        scene.relays[0].share = 0.3
        await scene.publish(scene.messages(200))
        await scene.ended()
        await scene.rabbit.declare("other")
        await scene.rabbit.publish(b"no job", to="other", message_id=planted["RabbitMQ"])
        await scene.look(DEAD_LETTERS)
        leaks = scene.leaks(planted)
        found = {(channel, leak.secret) for channel, them in leaks.items() for leak in them}
        assert found >= {(PLANTED_IN.get(name, name), name) for name in planted}
        assert {secret for _, secret in found} == set(planted), "something else was found"
