"""Every client against servers that demand TLS and a password; wrong ones are named at once."""

from __future__ import annotations

import ast
import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr, ValidationError
from redis.exceptions import NoPermissionError
from structlog.testing import capture_logs

from afterclick.errors import Unavailable
from afterclick.io.kafka_clients import create_admin, java_properties, python_admin, spark_options
from afterclick.io.kafka_log import KafkaLog
from afterclick.io.redis_clients import create_redis
from afterclick.settings import KafkaSettings, RedisSettings, Settings
from infra.embedded.java import KAFKA, ensure_jars
from infra.embedded.kafka import SecureKafkaServer, ensure_topics
from infra.embedded.process import afterclick_command
from ingest.producer import EventProducer
from serving.control.rate_limit import RateLimit
from serving.events.feedback import FeedbackLog
from serving.state.history import OnlineStore
from serving.state.kafka_reader import TopicReader
from streaming.connection import NodeConnection, load_functions, redis_client
from tests.secure_servers import ENCODED, PASSWORD, AclValkeyServer, secure_redis
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
WRONG = SecretStr("not the password")
Fields = dict[str, Any]


@pytest.fixture(scope="module")
def secure_kafka(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """Settings of a broker that accepts only TLS with a password."""
    folder = tmp_path_factory.mktemp("secure-kafka")
    server = SecureKafkaServer(folder, ensure_jars(jars, KAFKA))
    server.start()
    settings = server.client_settings.model_copy(update={"partitions": 1})
    ensure_topics(Settings(kafka=settings))
    yield settings
    server.kill()


@pytest.fixture(scope="module")
def valkey(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[AclValkeyServer, RedisSettings]]:
    with secure_redis(tmp_path_factory.mktemp("secure-valkey")) as server:
        yield server


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_kafka_client_has_tls_and_sasl(secure_kafka: KafkaSettings, mechanism: str) -> None:
    kafka = secure_kafka.model_copy(update={"sasl_mechanism": mechanism})
    topic, value = kafka.topics.reviews, uuid4().bytes
    with EventProducer(kafka) as producer:
        producer.send(topic, [{"key": b"k", "value": value}], 1)
    with KafkaLog(kafka) as log:
        assert value in [record.value() for record in log.read(log.ranges(topic))]
        assert log.topic_ids(topic)[topic]
    assert topic in create_admin(kafka).list_topics(timeout=30).topics
    with python_admin(kafka) as admin:
        assert topic in admin.list_topics()


@pytest.mark.parametrize(
    ("change", "setting"),
    [({"password": WRONG}, "AFTERCLICK_KAFKA__PASSWORD"), ({"ca_file": None}, "__CA_FILE")],
)
def test_a_refused_client_names_the_setting(
    secure_kafka: KafkaSettings, change: Fields, setting: str
) -> None:
    kafka = secure_kafka.model_copy(update=change)
    with pytest.raises(Unavailable, match=setting), KafkaLog(kafka, 3.0) as log:
        log.ranges(kafka.topics.reviews)
    with pytest.raises(Unavailable, match=setting):
        EventProducer(kafka, connect_s=3.0)
    with pytest.raises(Unavailable, match=setting), python_admin(kafka, bootstrap_timeout_ms=3000):
        pass
    assert KafkaLog(secure_kafka).ranges(kafka.topics.reviews)  # the control


def test_clients_that_keep_trying_log_the_refusal_once(secure_kafka: KafkaSettings) -> None:
    kafka = secure_kafka.model_copy(update={"password": WRONG})
    reader = TopicReader(kafka, kafka.topics.items, lambda _: None)
    feedback = FeedbackLog(kafka)
    with capture_logs() as logs:
        reader.start()
        feedback.start()
        wait_until(lambda: len(_refusals(logs)) == 2, what="both clients to report the refusal")
        reader.stop()
        feedback.stop(0.0)
    assert all("AFTERCLICK_KAFKA__PASSWORD" in line["reason"] for line in _refusals(logs))
    assert WRONG.get_secret_value() not in str(logs)


def _refusals(logs: Any) -> list[Fields]:
    return [line for line in logs if line["event"] == "kafka refuses the connection"]


def test_a_command_with_a_wrong_password_ends_with_one_line(
    secure_kafka: KafkaSettings, tmp_path: Path
) -> None:
    kafka = secure_kafka.model_copy(update={"password": WRONG})
    env = afterclick_command(Settings(home=tmp_path, kafka=kafka), "dlq").env
    command = [sys.executable, "-m", "infra", "dlq", "ls"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == Unavailable.exit_code
    assert "AFTERCLICK_KAFKA__PASSWORD" in done.stderr
    assert "Traceback" not in done.stderr
    assert WRONG.get_secret_value() not in done.stderr


def test_every_redis_client_has_tls_and_the_user(
    valkey: tuple[AclValkeyServer, RedisSettings],
) -> None:
    server, secure = valkey
    for settings in (secure, server.client_settings):
        with redis_client(Settings(redis=settings)) as client:
            load_functions(client)
            assert client.set("lease", "me")
        assert NodeConnection(settings.client_url).call([("GET", "lease")]) == [b"me"]
        assert asyncio.run(_ping(settings))
        assert asyncio.run(RateLimit("1/minute", settings).allows(f"caller-{settings.url}"))
    assert server.rejected() == []


async def _ping(settings: RedisSettings) -> bool:
    store = OnlineStore(settings, 10)
    try:
        return await store.ping() and await store.rows("bob") == []
    finally:
        await store.close()


def test_the_shared_rate_limit_counts_in_redis(
    valkey: tuple[AclValkeyServer, RedisSettings],
) -> None:
    """Two processes: the second sees the call of the first, which a local count would not."""
    first, second = (RateLimit("1/minute", valkey[1]) for _ in range(2))

    async def calls() -> list[bool]:
        return [await limit.allows("shared") for limit in (first, second)]

    assert asyncio.run(calls()) == [True, False]


def test_a_refused_redis_client_names_the_setting(
    valkey: tuple[AclValkeyServer, RedisSettings],
) -> None:
    secure = valkey[1]
    wrong = secure.model_copy(update={"url": secure.url.replace(ENCODED, "wrong")})
    untrusted = secure.model_copy(update={"ca_file": None})
    for settings, setting in (
        (wrong, "AFTERCLICK_REDIS__URL"),
        (untrusted, "AFTERCLICK_REDIS__CA_FILE"),
    ):
        with redis_client(Settings(redis=settings)) as client:
            with pytest.raises(Unavailable, match=setting) as caught:
                load_functions(client)
            assert "wrong" not in str(caught.value)


def test_the_acl_denies_other_commands_and_keys(
    valkey: tuple[AclValkeyServer, RedisSettings],
) -> None:
    server, secure = valkey
    with create_redis(secure) as client:
        for command in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("GET", "session:of-another-app")):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command)
    with create_redis(RedisSettings(url=f"redis://health:x@127.0.0.1:{server.port}")) as probe:
        assert probe.ping()
        with pytest.raises(NoPermissionError):
            probe.get("lease")


def test_incomplete_settings_name_what_is_missing(tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    pem.touch()
    for fields, setting in (
        ({"security_protocol": "SASL_SSL"}, "AFTERCLICK_KAFKA__PASSWORD"),
        ({"username": "a", "password": "hidden"}, "AFTERCLICK_KAFKA__SECURITY_PROTOCOL"),
        ({"ca_file": pem}, "AFTERCLICK_KAFKA__SECURITY_PROTOCOL"),
        ({"security_protocol": "SSL", "cert_file": pem}, "AFTERCLICK_KAFKA__KEY_FILE"),
        ({"security_protocol": "SSL", "ca_file": tmp_path / "no.pem"}, "ca_file"),
    ):
        with pytest.raises(ValidationError, match=setting) as caught:
            KafkaSettings.model_validate(fields)
        assert "hidden" not in str(caught.value)
    with pytest.raises(ValidationError, match="AFTERCLICK_REDIS__URL"):
        RedisSettings(url="redis://127.0.0.1", ca_file=pem)


def test_the_password_reaches_children_but_no_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = 'quote" swordfish\\slash'
    kafka = KafkaSettings(security_protocol="SASL_SSL", username="shop", password=SecretStr(secret))
    settings = Settings(home=tmp_path, kafka=kafka)
    assert "swordfish" not in f"{settings!r}{settings.model_dump_json()}"
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings().kafka == kafka
    jaas = java_properties(kafka)["sasl.jaas.config"]
    assert jaas.endswith('username="shop" password="quote\\" swordfish\\\\slash";')
    assert spark_options(kafka)["kafka.sasl.jaas.config"] == jaas


CLIENTS = {
    "Producer", "Consumer", "AdminClient", "KafkaProducer", "KafkaConsumer", "KafkaAdminClient",
    "Redis", "RedisCluster", "StrictRedis", "from_url",
}  # fmt: skip
CREATORS = {
    "afterclick/io/kafka_clients.py",
    "afterclick/io/redis_clients.py",
    "streaming/connection.py",
}
"""The modules that create clients; those of streaming get `client_url`."""


def created_clients(source: str) -> list[str]:
    """The clients that a module creates, and the URLs and addresses that bypass the settings."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            found += [name] if name in CLIENTS else []
        elif isinstance(node, ast.Constant) and node.value in (
            "bootstrap.servers",
            "kafka.bootstrap.servers",
        ):
            found.append(str(node.value))
        elif isinstance(node, ast.keyword) and node.arg == "bootstrap_servers":
            found.append(node.arg)
    return found


def test_only_the_client_modules_create_clients() -> None:
    names = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [name for name in names.stdout.split() if not name.startswith("tests/")]
    found = {name: created_clients((ROOT / name).read_text()) for name in files}
    assert {name for name, clients in found.items() if clients} == CREATORS


def test_the_check_detects_a_client() -> None:
    """The control."""
    assert created_clients("redis.Redis.from_url(settings.redis.url)") == ["from_url"]
    assert created_clients("Producer({'bootstrap.servers': address})") == [
        "Producer",
        "bootstrap.servers",
    ]
    assert created_clients("f(bootstrap_servers=x)") == ["bootstrap_servers"]


def permitted() -> list[str]:
    """The commands and key patterns of the user `afterclick`."""
    return (ROOT / "infra" / "docker" / "valkey-users.acl").read_text().splitlines()[-1].split()


def test_the_user_may_run_every_command_of_the_code() -> None:
    """What the source names; the test of the whole stack runs them."""
    lua = (ROOT / "streaming" / "functions.lua").read_text()
    used = set(re.findall(r"redis\.call\('(\w+)'", lua))
    sources = [*(ROOT / "streaming").rglob("*.py"), *(ROOT / "serving").rglob("*.py")]
    for source in sources:
        text = source.read_text()
        used |= set(re.findall(r"\b(?:client|pipe|transaction|_redis)\.([a-z]+)\(", text))
        used |= set(re.findall(r"\(\"([A-Z]{3,})\", ", text))
    used = {{"delete": "del"}.get(name, name.lower()) for name in used}
    used -= {"auth", "call", "close", "aclose", "execute", "pipeline"}  # need no permission
    assert sorted(name for name in used if f"+{name}" not in permitted()) == []
    assert "+flushall" not in permitted()  # the control


def test_the_documented_permissions_are_those_of_the_images() -> None:
    documented = (ROOT / "docs" / "operations.md").read_text().split()
    assert [word for word in permitted() if word not in documented] == []
    assert PASSWORD not in documented
