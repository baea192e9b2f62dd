"""The Python examples of the README, run against the demo."""

import asyncio
import re
import sys
from pathlib import Path

import pytest
from rabbitmq import until
from worker import Worker

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(("example", "printed"), list(zip(EXAMPLES, (b"sent\n", b""), strict=True)))
async def test_an_example_sends_its_code(demo: Worker, tmp_path: Path, example: str, printed: bytes) -> None:
    (url,) = re.findall(r"Broker +(amqp://\S+)", demo.log)
    code = example.replace("amqp://guest:guest@localhost:5673/", url)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 40)
    assert (process.returncode, out) == (0, printed)
    otp = re.findall(r'"(\d{6})"', example)[0]

    async def shown() -> bool:
        return otp in (await demo.get("/inbox"))[1]

    await until(shown, f"{otp} in the inbox")
