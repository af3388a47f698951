"""docker-compose.yml and the Dockerfiles, checked without running them."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import jsonschema
import pytest
import redis
import yaml
from pydantic import SecretStr

from afterclick.io.redis_clients import create_redis
from afterclick.settings import KafkaSettings, RedisSettings, Settings
from infra.cli import reference, root_command
from infra.embedded.java import KAFKA, ensure_jars
from infra.embedded.kafka import KafkaServer, broker_answers, ensure_topics
from infra.embedded.server import ValkeyServer, free_port
from serving.control.auth import check_address

ROOT = Path(__file__).parents[2]
PASSWORD_OF = re.compile(r"\$\{(\w+):\?[^}]*\}")


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


@pytest.mark.parametrize("name", ["stream", "retrain"])
def test_a_process_without_http_is_unhealthy_while_a_loop_is_frozen(
    compose: dict[str, Any], name: str
) -> None:
    _, *command = compose["services"][name]["healthcheck"]["test"]
    assert command == ["afterclick", "heartbeats", name]
    assert "heartbeats" in root_command().commands


def test_the_schema_detects_a_mistake(compose: dict[str, Any], schema: dict[str, Any]) -> None:
    wrong = {**compose, "services": {"api": {"image": "x", "portz": ["8000:8000"]}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def environment(compose: dict[str, Any], service: str) -> dict[str, str]:
    """The variables of a service, with `secret-NAME` for each password."""
    return {
        name: PASSWORD_OF.sub(r"secret-\1", str(value))
        for name, value in compose["services"][service]["environment"].items()
    }


def test_every_service_is_restricted(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"] in {"1000:1000", "appuser", "valkey"}, name
        assert any(folder.startswith("/tmp:") for folder in service["tmpfs"]), name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert {"max-size", "max-file"} <= service["logging"]["options"].keys(), name


def test_versions_are_pinned_and_ports_have_health_checks(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert "build" in service or re.search(r":\d+\.\d+\.\d+$", service["image"]), name
        assert "healthcheck" in service or "ports" not in service, name
    for dockerfile in (ROOT / "infra" / "docker").glob("Dockerfile*"):
        text = dockerfile.read_text()
        bases = re.findall(r"^FROM (\S+)", text, re.M)
        assert bases
        assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base) for base in bases)
        assert "USER 1000:1000" in text


def test_every_password_is_required(compose: dict[str, Any]) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = re.findall(r"(?<!\$)\$\{(\w+)(:\?)?", text)
    assert {required for _, required in used} == {":?"}
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text().splitlines()
        if not line.startswith("#")
    )
    assert example == {name: "" for name, _ in used}
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


class ComposeKafka(KafkaServer):
    """The broker with the properties that its image derives from the compose file."""

    environment: ClassVar[dict[str, str]]

    @property
    def client_settings(self) -> KafkaSettings:
        return KafkaSettings(
            bootstrap=self.address,
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            username="afterclick",
            password=SecretStr("secret-KAFKA_PASSWORD"),
        )

    def prepare(self) -> None:
        super().prepare()
        moved = {
            "kafka:9092": self.address,
            "//:9092": f"//{self.address}",
            "//:9094": f"//127.0.0.1:{free_port()}",
            "127.0.0.1:9093": f"127.0.0.1:{self.controller_port}",
            "/var/lib/kafka/data": str(self.folder / "data"),
        }
        lines = []
        for name, value in self.environment.items():
            for old, new in moved.items():
                value = value.replace(old, new)
            lines.append(f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={value}\n")
        (self.folder / "server.properties").write_text("".join(lines))


def test_kafka_of_the_compose_file_demands_the_password(
    compose: dict[str, Any], jars: Path, tmp_path: Path
) -> None:
    ComposeKafka.environment = environment(compose, "kafka")
    server = ComposeKafka(tmp_path / "kafka", ensure_jars(jars, KAFKA))
    try:
        server.start()
        assert ensure_topics(Settings(kafka=server.client_settings))
        assert not broker_answers(KafkaSettings(bootstrap=server.address))  # the control
    finally:
        server.kill()


class ComposeValkey(ValkeyServer):
    """The server by the shell script of the compose file."""

    script: ClassVar[str]

    @property
    def client_settings(self) -> RedisSettings:
        return RedisSettings(url=f"redis://afterclick:secret@127.0.0.1:{self.port}/0")

    def command(self) -> Sequence[str | Path]:
        script = self.script.replace("$$", "$")
        for old, new in (
            ("/etc/afterclick", ROOT / "infra" / "docker"),
            ("/tmp/users.acl", self.folder / "users.acl"),
            ("/data", self.folder / "data"),
            ("--bind 0.0.0.0", f"--bind 127.0.0.1 --port {self.port}"),
            ("exec valkey-server", f"exec {super().command()[0]}"),
        ):
            assert old in script
            script = script.replace(old, str(new))
        return ["sh", "-euc", script]


def test_valkey_of_the_compose_file_demands_the_password(
    compose: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALKEY_PASSWORD", "secret")
    ComposeValkey.script = compose["services"]["valkey"]["entrypoint"][-1]
    server = ComposeValkey(tmp_path / "valkey")
    try:
        server.start()
        nobody = RedisSettings(url=f"redis://127.0.0.1:{server.port}/0")
        with create_redis(nobody) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
    finally:
        server.kill()


def test_the_workflow_reads_only_and_pins_its_actions() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    uses = [step["uses"] for step in steps if "uses" in step]
    assert uses
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", name) for name in uses)
    assert "make audit" in [step.get("run") for step in steps]


def test_every_service_is_started(compose: dict[str, Any]) -> None:
    assert {"kafka", "valkey", "stream", "serve", "ui", "train", "retrain", "replay"} <= set(
        compose["services"]
    )


def test_every_variable_is_a_setting(compose: dict[str, Any]) -> None:
    used = set(re.findall(r"AFTERCLICK_[A-Z_]+", (ROOT / "docker-compose.yml").read_text()))
    for dockerfile in (ROOT / "infra" / "docker").glob("Dockerfile*"):
        used |= set(re.findall(r"AFTERCLICK_[A-Z_]+", dockerfile.read_text()))
    assert used
    assert used <= reference.setting_names()


def test_the_settings_are_valid_and_let_the_api_start(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(compose, "serve").items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.kafka.bootstrap == "kafka:9092"
    assert settings.kafka.password == SecretStr("secret-KAFKA_PASSWORD")
    assert "secret-VALKEY_PASSWORD@valkey" in settings.redis.url
    check_address(settings.serving)
    pages_call = urlsplit(settings.ui.api_url).hostname
    assert settings.serving.allowed_hosts == (pages_call,), "no name that a browser resolves"


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
        copied = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M)
        sources = [word for line in copied for word in line.split()]
        assert "serving" in sources
        assert all((ROOT / source).exists() for source in sources)


def test_the_images_that_share_a_volume_have_one_user() -> None:
    """Only its owner reads a home folder."""
    texts = [path.read_text() for path in (ROOT / "infra" / "docker").glob("Dockerfile*")]
    ids = {number for text in texts for number in re.findall(r"useradd .*--uid (\d+)", text)}
    assert ids == {"1000"}
    assert all("\nUSER 1000:1000\n" in text for text in texts)


def test_services_wait_for_the_services_that_they_need(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services, name
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed], f"{name} waits for the health of {needed}"
