# The files of deploy/: the manifests hold together and ask for what the server has, as do nginx and the containers.
# Entry points: pytest.
# Shapes of Kubernetes objects are checked by kubernetes-validate, containers by hadolint, both by hand; names here.
"""Guards of deploy/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hildanext.api.app import create_app
from hildanext.config import Config, load_config
from hildanext.progress import Console


@pytest.fixture(scope="module")
def objects(project: Path) -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all((project / "deploy" / "kubernetes.yaml").read_text())}


def test_the_deployment_starts_a_server_that_drains_within_its_grace(objects: dict[str, Any]) -> None:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    sets = [word.removeprefix("--set=") for word in container["args"] if word.startswith("--set=")]
    serve = load_config(None, sets).serve
    assert serve.drain_seconds + serve.shutdown_seconds < pod["terminationGracePeriodSeconds"]
    assert serve.shutdown_seconds >= serve.request_seconds
    reads = container["readinessProbe"]
    assert serve.drain_seconds > reads["periodSeconds"] * reads["failureThreshold"]
    assert container["ports"][0] == {"name": "http", "containerPort": serve.port}


def test_the_probes_and_the_autoscaler_ask_for_what_there_is(objects: dict[str, Any]) -> None:
    container = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    paths = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    known = create_app(Config(), Console(quiet=True)).openapi()["paths"]
    assert paths == {"/health", "/live"} and paths <= known.keys()
    metric = objects["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    source = Path(create_app.__globals__["routes"].__file__).read_text(encoding="utf-8")
    assert f'"{metric.removeprefix("hildanext_")}":' in source


def test_the_objects_name_each_other(objects: dict[str, Any]) -> None:
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    backend = objects["Ingress"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend["name"] == objects["Service"]["metadata"]["name"]
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", objects["Deployment"]["metadata"]["name"])


def test_nginx_sends_a_session_to_one_replica_and_repeats_no_job(project: Path) -> None:
    text = (project / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    assert "hash $hildanext_session consistent;" in text and "map $http_x_session_id $hildanext_session" in text
    jobs = text[text.index("location /jobs") :].partition("}")[0]
    assert "proxy_next_upstream off;" in jobs and "non_idempotent" in text
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_what_an_image_copies_is_there_and_let_through(project: Path, name: str) -> None:
    text = (project / "deploy" / name).read_text(encoding="utf-8")
    ignored = (project / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.M) for word in line.split()[:-1]]
    assert copied and all((project / word).exists() and f"!{word}" in ignored for word in copied)
