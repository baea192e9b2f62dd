"""What kustomize builds from `deploy/kubernetes`."""

import re
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import kubernetes
import pytest
import yaml
from conftest import Stage
from given_settings import load_settings
from kubernetes import ENVIRONMENTS, ROOT, SOURCE, Manifest, check_schemas, kustomize, settings_of
from prometheus import Prometheus, rules
from rabbitmq import until

from otp_stream.settings import Settings
from otp_stream.settings.secret_files import secret_names

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NAME = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Manifest]]:
    """Build each environment, with the example's secrets."""
    copy = kubernetes.copy_with_secrets(tmp_path_factory.mktemp("kustomize"))
    return {it: kustomize(copy / "overlays" / it) for it in ENVIRONMENTS}


def one(objects: Iterable[Manifest], kind: str) -> Manifest:
    (found,) = (it for it in objects if it["kind"] == kind)
    return found


def pod_of(objects: Iterable[Manifest]) -> Any:
    return one(objects, "Deployment")["spec"]["template"]


def test_every_object_matches_the_published_schema_of_its_kind(
    built: dict[str, list[Manifest]], tmp_path: Path
) -> None:
    objects = [*(it for them in built.values() for it in them), *kustomize(SOURCE / "rules")]
    assert {it["kind"] for it in objects} == {
        "ConfigMap", "Deployment", "Namespace", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "PrometheusRule",
        "ScaledObject", "Secret", "Service",
    }  # fmt: skip
    check_schemas(objects, tmp_path / "types")


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [("Deployment", {"spec": {"replica": 2}}), ("ScaledObject", {"spec": {"minReplicas": 2}}), ("PodMonitor", {})],
)
def test_the_check_of_schemas_finds_a_field_that_is_misspelt_or_missing(
    built: dict[str, list[Manifest]], kind: str, wrong: dict[str, Any], tmp_path: Path
) -> None:
    it = one(built["production"], kind)
    it = {**it, "spec": {**it["spec"], **wrong["spec"]}} if wrong else {**it, "spec": {}}
    with pytest.raises(AssertionError, match=r"may only specify known properties|is missing in type"):
        check_schemas([it], tmp_path / "types")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_object_has_the_recommended_labels_and_the_namespace(
    built: dict[str, list[Manifest]], environment: str
) -> None:
    for it in built[environment]:
        name = f"otp-stream-{environment}"
        labels = it["metadata"]["labels"]
        assert (labels[NAME], labels[INSTANCE]) == ("otp-stream", name), it["kind"]
        assert it["metadata"].get("namespace", it["metadata"]["name"]) == name
    labels = pod_of(built[environment])["metadata"]["labels"]
    assert labels["app.kubernetes.io/version"] == VERSION
    assert labels.keys() >= {f"app.kubernetes.io/{it}" for it in ("component", "part-of")}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_selector_selects_the_pods_of_its_environment(built: dict[str, list[Manifest]], environment: str) -> None:
    objects = built[environment]
    pod = pod_of(objects)
    both = {it: pod["metadata"]["labels"][it] for it in (NAME, INSTANCE)}
    assert one(objects, "Deployment")["spec"]["selector"]["matchLabels"] == both
    assert one(objects, "Service")["spec"]["selector"] == both
    assert one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == both
    spread = pod["spec"]["topologySpreadConstraints"]
    assert [it["topologyKey"] for it in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    assert all(it["labelSelector"]["matchLabels"] == both for it in spread)
    if environment != "development":
        assert one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == both
        assert one(objects, "PodMonitor")["spec"]["selector"]["matchLabels"] == both


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_settings_are_those_of_a_worker_of_the_environment(
    built: dict[str, list[Manifest]], environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings_of(built[environment])
    settings, problems = load_settings(given, tmp_path, monkeypatch)
    assert problems == []
    assert (settings.worker, settings.app_env, settings.prefetch_count) == (True, environment, 200)
    known = {"NODE_ENV", *(name.upper() for name in Settings.model_fields)}
    assert given.keys() <= known
    secrets = {name.upper() for name in secret_names()} - {"SMTP_USER"}
    assert not secrets & one(built[environment], "ConfigMap")["data"].keys()
    pod = pod_of(built[environment])["spec"]
    assert pod["terminationGracePeriodSeconds"] >= settings.shutdown_grace_ms / 1000 + 5
    container = pod["containers"][0]
    sources = {value["name"] for it in container["envFrom"] for value in it.values()}
    assert sources == {it["metadata"]["name"] for it in built[environment] if it["kind"] in {"ConfigMap", "Secret"}}
    assert "otp-stream" not in sources  # names with a hash: other settings start other pods
    assert "env" not in container


def test_no_secret_is_in_the_repository_and_a_build_without_one_names_its_file() -> None:
    files = subprocess.run(["git", "ls-files", "deploy"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "secret.example.env" in files
    assert "secret.env" not in files.replace("secret.example.env", "")
    for environment in ENVIRONMENTS:
        folder = SOURCE / "overlays" / environment
        assert (
            subprocess.run(["git", "check-ignore", "-q", folder / "secret.env"], cwd=ROOT, check=False).returncode == 0
        )
        if not (folder / "secret.env").exists():
            with pytest.raises(AssertionError, match=r"secret\.env"):
                kustomize(folder)


def test_passwords_as_files_have_the_names_of_settings_and_are_mounted_whole(tmp_path: Path) -> None:
    folder = kubernetes.copy_with_secrets(tmp_path) / "overlays/production"
    file = folder / "kustomization.yaml"
    changed = yaml.safe_load(file.read_text())
    changed["components"].append("../../secret-files")
    file.write_text(yaml.safe_dump(changed))
    objects = kustomize(folder)
    check_schemas(objects, tmp_path / "types")
    pod = pod_of(objects)["spec"]
    (mount,) = (it for it in pod["containers"][0]["volumeMounts"] if it["name"] == "passwords")
    assert "subPath" not in mount
    (volume,) = (it["secret"] for it in pod["volumes"] if it["name"] == "passwords")
    files = {it["name"]: it["value"] for it in pod["containers"][0]["env"]}
    assert files.keys() <= {f"{name.upper()}_FILE" for name in secret_names()}
    assert set(files.values()) == {f"{mount['mountPath']}/{it[: -len('_FILE')].lower()}" for it in files}
    steps = (SOURCE / "secret-files/kustomization.yaml").read_text()
    assert f"secret generic {volume['secretName']} " in steps
    assert re.findall(r"--from-file=(\w+)", steps) == [Path(it).name for it in files.values()]
    assert {"tmp", "passwords"} == {it["name"] for it in pod["volumes"]}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_pod_fulfils_the_restricted_pod_security_standard(
    built: dict[str, list[Manifest]], environment: str
) -> None:
    assert (
        one(built[environment], "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    )
    pod = pod_of(built[environment])["spec"]
    assert pod["automountServiceAccountToken"] is False
    security = pod["securityContext"]
    assert (security["runAsNonRoot"], security["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    assert security["runAsUser"] > 0
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_a_pod_is_not_evicted_for_its_logs_and_a_full_folder(built: dict[str, list[Manifest]]) -> None:
    pod = pod_of(built["production"])["spec"]
    folders = sum(_mebibytes(it["emptyDir"]["sizeLimit"]) for it in pod["volumes"])
    five_log_files = 5 * 50  # of the size with which some providers configure the kubelet; its own default is 10
    for container in pod["containers"]:
        assert _mebibytes(container["resources"]["limits"]["ephemeral-storage"]) > folders + five_log_files


def _mebibytes(size: str) -> int:
    return int(size[:-2]) * {"Mi": 1, "Gi": 1024}[size[-2:]]


def test_the_network_policy_allows_the_ports_of_the_worker_alone(built: dict[str, list[Manifest]]) -> None:
    policy = one(built["production"], "NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    ports = {it["name"] for it in pod_of(built["production"])["spec"]["containers"][0]["ports"]}
    assert {it["port"] for rule in policy["ingress"] for it in rule["ports"]} == ports
    assert all(rule["from"] for rule in policy["ingress"])
    allowed = {it["port"] for rule in policy["egress"] for it in rule["ports"]}
    assert allowed == {53, 5672, 5671, 587, 465, 25, 6379, 4317, 4318, 443}


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_the_job_of_prometheus_is_the_one_that_the_alerts_watch(
    built: dict[str, list[Manifest]], environment: str
) -> None:
    monitor = one(built[environment], "PodMonitor")["spec"]
    job = pod_of(built[environment])["metadata"]["labels"][monitor["jobLabel"]]
    (down,) = (rule["expr"] for rule in rules() if rule.get("alert") == "OtpWorkerDown")
    assert re.fullmatch(re.findall(r'job=~"([^"]+)"', down)[0], job)
    if environment == "production":
        (trigger,) = one(built[environment], "ScaledObject")["spec"]["triggers"]
        assert f'{{job="{job}"}}' in trigger["metadata"]["query"]


def test_the_number_of_workers_belongs_to_keda_alone(built: dict[str, list[Manifest]]) -> None:
    assert "replicas" not in one(built["production"], "Deployment")["spec"]
    scaling = one(built["production"], "ScaledObject")["spec"]
    assert scaling["scaleTargetRef"]["name"] == one(built["production"], "Deployment")["metadata"]["name"]
    assert scaling["minReplicaCount"] > one(built["production"], "PodDisruptionBudget")["spec"]["maxUnavailable"]


async def test_a_worker_answers_what_kubernetes_prometheus_and_keda_ask_for(
    stage: Stage, built: dict[str, list[Manifest]], tmp_path: Path
) -> None:
    worker = await stage.run()
    container = pod_of(built["production"])["spec"]["containers"][0]
    probes = [container[f"{it}Probe"]["httpGet"] for it in ("startup", "liveness", "readiness")]
    monitored = one(built["production"], "PodMonitor")["spec"]["podMetricsEndpoints"]
    for it in (*probes, *monitored):
        assert it["port"] in {port["name"] for port in container["ports"]}
        assert (await worker.get(it["path"]))[0] == 200
    (trigger,) = one(built["production"], "ScaledObject")["spec"]["triggers"]
    query = trigger["metadata"]["query"].replace("-production", "")
    async with Prometheus(tmp_path / "prometheus", worker.port) as prometheus:

        async def measured() -> list[dict[str, Any]]:
            return await prometheus.query(query)

        (found,) = await until(measured, "a value")  # KEDA expects one
    assert found["value"][1] == "0"
