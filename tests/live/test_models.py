"""Models that Modelina generates from the AsyncAPI document, by the script of docs/schemas.md."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import ground
import pytest
import relays

from otp_stream.core.job_event import JobEvent
from otp_stream.core.otp_job import OtpJob

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "tests/models"
DOCUMENT = ROOT / "asyncapi/otp-stream.json"
SCRIPT = re.findall(r"```js\n(.*?)```", (ROOT / "docs/schemas.md").read_text(), re.DOTALL)[0]
NAMES = {"ErasedBody", "JobEvent", "Metadata", "OtpJob", "Outcome", "Priority", "ReplyClass", "RequestOrigin"}
MODELS = {"JobEvent": JobEvent, "OtpJob": OtpJob}
JACKSON = ":".join(str(ground.JACKSON.with_name(f"jackson-{it}.jar")) for it in ("annotations", "core", "databind"))

VALIDATE = """
const { Parser } = require("@asyncapi/parser");
const content = JSON.parse(require("node:fs").readFileSync(0));
Promise.all(process.argv.slice(1).map((asyncapi) => new Parser().parse({ ...content, asyncapi })))
  .then((parsed) => console.log(JSON.stringify(parsed.map((it) => it.diagnostics))));
"""


def run(folder: Path, *command: str | Path, text: str = "") -> str:
    env = {**os.environ, "NODE_PATH": str(relays.NODE_MODULES), "GOCACHE": str(relays.FOLDER / "go"), "GOFLAGS": ""}
    done = subprocess.run(
        command, cwd=folder, env=env, input=text, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def examples() -> list[dict[str, Any]]:
    """Return each example of the document, with the name of its schema."""
    found = [
        {"schema": message["payload"]["$ref"].rpartition("/")[2], "payload": example["payload"]}
        for message in json.loads(DOCUMENT.read_text())["components"]["messages"].values()
        for example in message.get("examples", ())
    ]
    return [it for at, it in enumerate(found) if it not in found[:at]]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "generate.js").write_text(SCRIPT)
    run(folder, "node", "generate.js", DOCUMENT)
    return folder


def java(folder: Path, text: str) -> str:
    sources = [SOURCES / "RoundTrip.java", *(folder / "models").iterdir()]
    run(folder, "javac", "-proc:none", "-cp", JACKSON, "-d", "classes", *sources)
    return run(folder, "java", "-XX:TieredStopAtLevel=1", "-cp", f"{JACKSON}:classes", "RoundTrip", text=text)


def go(folder: Path, text: str) -> str:
    (folder / "go.mod").write_text("module roundtrip\n\ngo 1.18\n")
    (folder / "main.go").write_text((SOURCES / "round_trip.go").read_text())
    return run(folder, "go", "run", ".", text=text)


def typescript(folder: Path, text: str) -> str:
    (folder / "main.ts").write_text((SOURCES / "round_trip.ts").read_text())
    options = ["--strict", "--target", "es2022", "--module", "commonjs", "--types", "", "--outDir", "js"]
    run(folder, "node", relays.NODE_MODULES / "typescript/bin/tsc", *options, "main.ts")
    return run(folder, "node", "js/main.js", text=text)


@pytest.mark.parametrize("language", [java, go, typescript], ids=lambda it: it.__name__)
def test_generated_models_compile_and_round_trip_every_example(generated: Path, language: Any) -> None:
    folder = generated / language.__name__
    names = {path.stem.replace("_", "").lower() for path in (folder / "models").iterdir()}
    assert names == {it.lower() for it in NAMES}
    given = examples()
    made = json.loads(language(folder, json.dumps(given)))
    for example, payload in zip(given, made, strict=True):
        # a model may omit or add a default, so what the worker and its consumers read is compared
        if model := MODELS.get(example["schema"]):
            assert model.model_validate(payload) == model.model_validate(example["payload"])
        else:
            assert payload == example["payload"]


def test_the_document_is_valid_by_the_official_parser_in_its_version_and_in_the_latest_one(tmp_path: Path) -> None:
    text = DOCUMENT.read_text()
    own, latest = json.loads(run(tmp_path, "node", "-e", VALIDATE, "3.0.0", "3.1.0", text=text))
    assert [it["code"] for it in own] == ["asyncapi-latest-version"]
    assert latest == []
