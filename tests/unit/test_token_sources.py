"""Access tokens from a file or a command that behaves badly."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from otp_stream.relay import OAuthConfig, token_sources
from otp_stream.relay.access_token import MAX_ANSWER, TokenError
from otp_stream.relay.oauth import AccessTokens, access_tokens

JSON = '{"access_token": "ya29.a0", "expires_in": 3600}'


def from_file(path: Path) -> AccessTokens:
    return access_tokens(OAuthConfig("otp@example.com", token_file=path))


def from_command(*command: str) -> AccessTokens:
    return access_tokens(OAuthConfig("otp@example.com", token_command=command))


def from_shell(script: str) -> AccessTokens:
    return from_command("/bin/sh", "-c", script)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what it waits for sets no event
            await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_named_pipe_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token")
    with pytest.raises(TokenError, match="SMTP_OAUTH_TOKEN_FILE is not a file"):
        async with asyncio.timeout(5):
            await from_file(tmp_path / "token").get()


async def test_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match=r"SMTP_OAUTH_TOKEN_FILE cannot be read \(Is a directory\)"):
        await from_file(tmp_path).get()


async def test_a_file_with_the_signature_of_windows_editors_is_read(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(JSON, encoding="utf-8-sig")
    tokens = from_file(tmp_path / "token")
    assert await tokens.get() == "ya29.a0"
    await tokens.close()


@pytest.mark.parametrize(
    "content",
    [
        b"ya29\0a0", b"ya29\1a0", b"ya29\x7f", b'{"access_token": "ya29 a0"}', b'{"access_token": "ya29\\r\\nQUIT"}',
        b'{"access_token": "ya29\\u0000"}', b'{"access_token": "ya29\\u0001\\u0001"}', b'{"a":' * 5_000,
        b'{"access_token": "ya29", "token_type": "mac"}', b"y" * (MAX_ANSWER + 1), b"\xff\xfey\0a\0",
    ],
)  # fmt: skip
async def test_a_token_that_no_login_can_carry_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(TokenError, match="SMTP_OAUTH_TOKEN_FILE holds") as raised:
        await from_file(tmp_path / "token").get()
    assert "ya29" not in str(raised.value)


@pytest.mark.parametrize("life", ["1e999", f"1{'0' * 400}", "NaN", "true", "[]", '"soon"', "0"])
async def test_a_life_that_is_no_number_of_seconds_does_not_make_a_token_useless(tmp_path: Path, life: str) -> None:
    (tmp_path / "token").write_text(f'{{"access_token": "ya29.a0", "expires_in": {life}}}')
    tokens = from_file(tmp_path / "token")
    assert await tokens.get() == "ya29.a0"
    await tokens.close()


@pytest.mark.parametrize(("age_s", "life_s"), [(0, 3600), (3000, 600), (7000, 30), (-7000, 3600)])
async def test_the_life_of_a_token_begins_when_its_file_is_written(tmp_path: Path, age_s: int, life_s: int) -> None:
    (tmp_path / "token").write_text(JSON)
    written = time.time() - age_s
    os.utime(tmp_path / "token", (written, written))
    tokens = from_file(tmp_path / "token")
    await tokens.get()
    assert life_s - 5 < tokens.valid_s <= life_s
    await tokens.close()


async def test_a_process_that_a_command_leaves_behind_is_not_waited_for() -> None:
    async with asyncio.timeout(5):
        tokens = from_shell("sleep 30 & echo $! >&2; echo ya29.$!")
        token = await tokens.get()
    await tokens.close()
    os.kill(int(token.removeprefix("ya29.")), 9)


async def test_a_command_that_writes_without_end_is_stopped(tmp_path: Path) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(TokenError, match=r"SMTP_OAUTH_TOKEN_COMMAND \(sh\) holds more than 65536 bytes"):
            await from_shell(f"echo $$ >{tmp_path}/pid; exec yes").get()
    await until(lambda: not is_running(int((tmp_path / "pid").read_text())))


@pytest.mark.parametrize("end", ["closed", "timed out"])
async def test_a_command_ends_with_all_that_it_started(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_sources, "_COMMAND_S", 30 if end == "closed" else 0.5)
    tokens = from_shell(f"sleep 30 & echo $! >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; wait")
    getting = asyncio.create_task(tokens.get())
    await until((tmp_path / "pid").exists)
    if end == "closed":
        began = time.monotonic()
        await tokens.close()
        assert time.monotonic() - began < 5
    result = (await asyncio.gather(getting, return_exceptions=True))[0]
    assert isinstance(result, asyncio.CancelledError if end == "closed" else TokenError)
    await until(lambda: not is_running(int((tmp_path / "pid").read_text())))


async def test_any_other_error_of_a_source_is_an_error_that_connections_expect() -> None:
    async def fails() -> None:
        raise RecursionError("secret")

    with pytest.raises(TokenError, match=r"failed \(RecursionError\)") as raised:
        await AccessTokens(fails).get()  # pyright: ignore[reportArgumentType] - it returns nothing
    assert "secret" not in str(raised.value)


def test_a_thread_that_hangs_does_not_delay_the_end_of_the_process() -> None:
    code = (
        "import asyncio, time; from otp_stream.tasks import in_thread\n"
        "async def main():\n"
        "    hangs = asyncio.create_task(in_thread(lambda: time.sleep(60), 'test'))\n"
        "    await asyncio.sleep(0.1)\n"
        "    hangs.cancel()\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=20, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_command_is_not_shown_because_it_may_hold_a_secret() -> None:
    assert "hunter2" not in repr(OAuthConfig("otp@example.com", token_command=("token", "hunter2")))
