"""The chart in `deploy/helm`: with its own values it makes what kustomize builds for production."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import kubernetes
import pytest
from kubernetes import ROOT, SOURCE, Manifest, check_schemas, kustomize, manifests, program, run

from otp_stream.settings.secret_files import secret_names

CHART = ROOT / "deploy/helm/otp-stream"
RELEASE = "otp-stream-production"
SECRETS = set(secret_names()) - {"smtp_user"} | {
    f"otel_exporter_otlp_{it}headers" for it in ("", "logs_", "metrics_", "traces_")
}
OPTIONAL = {"NetworkPolicy", "PodMonitor", "ScaledObject"}


def template(*options: str, release: str = RELEASE) -> list[Manifest]:
    """Render the chart."""
    return manifests(run(program("helm"), "template", release, CHART, *options))


def test_helm_finds_no_fault_in_the_chart() -> None:
    assert "0 chart(s) failed" in run(program("helm"), "lint", "--strict", CHART)


def test_the_chart_makes_what_kustomize_builds_for_production(tmp_path: Path) -> None:
    built = kustomize(kubernetes.copy_with_secrets(tmp_path) / "overlays/production")
    expected = comparable(it for it in built if it["kind"] not in {"Namespace", "Secret"})
    assert comparable(template()) == expected


def comparable(objects: Iterable[Manifest]) -> dict[str, Any]:
    """Return objects by kind, without what differs on purpose: names, hashes, and labels of Helm."""
    found: dict[str, Any] = {}
    for it in objects:
        text = re.sub(r'"otp-stream(-production)?(-[a-z0-9]{10})?"', '"otp-stream"', json.dumps(it))
        content = json.loads(text)
        metadata = content.pop("metadata")
        assert {"app.kubernetes.io/name", "app.kubernetes.io/instance"} <= metadata["labels"].keys()
        if it["kind"] == "Deployment":
            pod = content["spec"]["template"]["metadata"]
            pod["labels"] = {key: pod["labels"][key] for key in pod["labels"] if key.startswith("app.kubernetes.io/")}
            pod["labels"].pop("app.kubernetes.io/managed-by", None)
            pod["annotations"].pop("checksum/settings", None)
        if it["kind"] == "NetworkPolicy":
            rules = content["spec"].pop("egress")
            content["egress"] = sorted((port["protocol"], port["port"]) for rule in rules for port in rule["ports"])
        found[it["kind"]] = content
    return found


def test_every_object_matches_the_published_schema_of_its_kind(tmp_path: Path) -> None:
    objects = template("--set", "rules.enabled=true", "--set", "rules.labels.release=prometheus")
    check_schemas(objects, tmp_path / "types")
    (rule,) = (it for it in objects if it["kind"] == "PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    assert rule["spec"] == kustomize(SOURCE / "rules")[0]["spec"]


def test_operators_and_the_network_policy_can_be_turned_off() -> None:
    off = [f"{it}.enabled=false" for it in ("scaling", "podMonitor", "networkPolicy")]
    objects = template("--set", ",".join(off), "--set", "replicas=3", release="any-name")
    assert not OPTIONAL & {it["kind"] for it in objects}
    (deployment,) = (it for it in objects if it["kind"] == "Deployment")
    assert deployment["spec"]["replicas"] == 3


def test_another_setting_starts_other_pods_and_a_digest_takes_the_place_of_the_tag() -> None:
    digest = f"sha256:{'0' * 64}"
    options = ("--set", "settings.PREFETCH_COUNT=100", "--set-string", f"image.digest={digest}")
    found = []
    for objects in (template(), template("--set-string", "settings.PREFETCH_COUNT=100", *options[2:])):
        (deployment,) = (it for it in objects if it["kind"] == "Deployment")
        found.append(deployment["spec"]["template"])
    assert found[0]["metadata"]["annotations"] != found[1]["metadata"]["annotations"]
    images = [pod["spec"]["containers"][0]["image"] for pod in found]
    assert images == ["registry.example.com/otp-stream:0.1.0", f"registry.example.com/otp-stream@{digest}"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--set", "replica=3"), "additional properties 'replica' not allowed"),
        (("--set", "image.digest=latest"), "does not match pattern"),
        (("--set", "settings.PREFETCH_COUNT=100"), "got number, want string"),
        *((("--set-string", f"settings.{name.upper()}=x"), "'not' failed") for name in sorted(SECRETS)),
    ],
)
def test_a_value_that_cannot_be_right_is_refused(options: tuple[str, ...], error: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(error)):
        template(*options)


def test_a_release_whose_alerts_would_not_see_it_is_refused() -> None:
    with pytest.raises(AssertionError, match="choose such a name"):
        template(release="mailer")
