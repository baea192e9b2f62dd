"""HTTP connections that send or read nothing delay neither codes nor probes."""

import asyncio
import contextlib
import resource
import socket

from api import TOKEN
from conftest import Stage
from worker import Worker, job


async def _start_with(descriptors: int, worker: Worker) -> None:
    worker.options = ("--workers", "1")  # the fork server has its own limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    try:
        await worker.start(ready=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await worker.wait_ready(150)  # a new interpreter takes half a minute on a busy machine


async def test_codes_go_out_and_probes_are_answered_while_idle_connections_outnumber_descriptors(stage: Stage) -> None:
    worker = stage.worker()
    await _start_with(256, worker)
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> None:
        with contextlib.suppress(OSError):
            writers.append((await asyncio.open_connection("127.0.0.1", worker.port))[1])

    try:
        for _ in range(4):
            await asyncio.gather(*(connect() for _ in range(150)))
        await stage.rabbit.publish(*(job(f"u{number}@example.com") for number in range(30)))
        await stage.relay.wait_accepted(30)
        assert (await worker.get("/livez"))[0] == 200
    finally:
        for writer in writers:
            writer.close()


async def test_probes_are_answered_while_clients_pipeline_requests_and_read_nothing(stage: Stage) -> None:
    worker = stage.worker()
    await _start_with(160, worker)  # about 70 connections
    loop = asyncio.get_running_loop()
    socks: list[socket.socket] = []

    async def pipeline() -> None:
        sock = socket.socket()
        socks.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            await loop.sock_connect(sock, ("127.0.0.1", worker.port))
            await loop.sock_sendall(sock, b"GET /asyncapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 300)

    try:
        await asyncio.gather(*(pipeline() for _ in range(90)))
        await worker.wait_ready(60)  # once it has handled the requests before
        for _ in range(20):
            assert (await worker.get("/livez"))[0] == 200
            await asyncio.sleep(0.1)
        assert "Traceback" not in worker.log
    finally:
        for sock in socks:
            sock.close()


async def test_requests_that_are_open_when_the_worker_stops_get_503_and_leave_no_traceback(stage: Stage) -> None:
    worker = await stage.run(INTAKE_TOKEN=TOKEN)
    begun = [f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n" for path in ("/login", "/v1/jobs")]
    heads = [f"{it}Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n\r\n" for it in begun]
    opened = [await asyncio.open_connection("127.0.0.1", worker.port) for _ in heads]
    for head, (_, writer) in zip(heads, opened, strict=True):
        writer.write(head.encode())
        await writer.drain()
    assert (await worker.get("/livez"))[0] == 200  # it has read them
    await worker.stop()
    for reader, writer in opened:
        assert b" 503 " in await asyncio.wait_for(reader.readline(), 10)
        writer.close()
    assert "Traceback" not in worker.log
    assert "Exception in ASGI" not in worker.log
