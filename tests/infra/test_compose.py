"""docker-compose.yml and the Dockerfiles, checked without running them."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from afterclick.settings import Settings
from infra.cli import reference, root_command
from serving.control.auth import check_address

ROOT = Path(__file__).parents[2]


class Strict(yaml.SafeLoader):
    """A YAML loader that rejects duplicate keys of a mapping, as Compose does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.load((ROOT / "docker-compose.yml").read_text(), Strict)
    return content


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The Compose Specification's JSON Schema, as check-jsonschema ships it."""
    path = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_the_file_follows_the_compose_specification(
    compose: dict[str, Any], schema: dict[str, Any]
) -> None:
    jsonschema.validate(compose, schema)


def test_no_key_is_duplicated() -> None:
    """The control: a duplicate key is detected, also below a merge."""
    with pytest.raises(yaml.constructor.ConstructorError, match=r"twice: \{'a'\}"):
        yaml.load("x: {a: 1, b: 2, a: 3}", Strict)
    yaml.load((ROOT / "docker-compose.yml").read_text(), Strict)


def test_the_schema_detects_a_mistake(compose: dict[str, Any], schema: dict[str, Any]) -> None:
    wrong = {**compose, "services": {"api": {"image": "x", "portz": ["8000:8000"]}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_every_service_is_started(compose: dict[str, Any]) -> None:
    assert {"kafka", "valkey", "stream", "serve", "ui", "train", "retrain", "replay"} <= set(
        compose["services"]
    )


def test_every_variable_is_a_setting(compose: dict[str, Any]) -> None:
    used = set(re.findall(r"AFTERCLICK_[A-Z_]+", (ROOT / "docker-compose.yml").read_text()))
    for dockerfile in (ROOT / "infra" / "docker").iterdir():
        used |= set(re.findall(r"AFTERCLICK_[A-Z_]+", dockerfile.read_text()))
    assert used
    assert used <= reference.setting_names()


def test_the_settings_are_valid_and_let_the_api_start(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in compose["services"]["serve"]["environment"].items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.kafka.bootstrap == "kafka:9092"
    check_address(settings.serving)


def test_ports_are_published_on_loopback_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_command_exists(compose: dict[str, Any]) -> None:
    own = [s for s in compose["services"].values() if "build" in s]
    words = {
        f"afterclick {' '.join(service['command'])}" for service in own if "command" in service
    }
    words |= {
        re.sub(r" (/|--).*", "", part)
        for service in own
        for part in service.get("entrypoint", [""])[-1].split(" && ")
        if part
    }
    assert "afterclick serve" in words
    assert words <= set(reference.command_names(root_command()))


def test_every_image_is_built_from_an_extra_and_folders_that_exist(compose: dict[str, Any]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    builds = [service["build"] for service in compose["services"].values() if "build" in service]
    assert {build["args"]["EXTRA"] for build in builds} <= set(extras)
    for name in {build["dockerfile"] for build in builds}:
        text = (ROOT / name).read_text()
        sources = [
            word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()
        ]
        assert "serving" in sources
        assert all((ROOT / source).exists() for source in sources)


def test_services_wait_for_the_services_that_they_need(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services, name
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed], f"{name} waits for the health of {needed}"
