"""Clients of Kafka with the TLS and SASL settings: no other module creates one.

librdkafka, kafka-python, and Java with Spark name the same settings differently.

reads, writes  topic  any
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import structlog

from afterclick.errors import Unavailable
from afterclick.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Producer
    from confluent_kafka.admin import AdminClient
    from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

log = structlog.get_logger()
_LOGIN_SETTINGS = (
    "AFTERCLICK_KAFKA__USERNAME, AFTERCLICK_KAFKA__PASSWORD and AFTERCLICK_KAFKA__SASL_MECHANISM"
)

_LIBRDKAFKA_NAMES = {
    "ca_file": "ssl.ca.location",
    "cert_file": "ssl.certificate.location",
    "key_file": "ssl.key.location",
    "sasl_mechanism": "sasl.mechanism",
    "username": "sasl.username",
    "password": "sasl.password",
}
_KAFKA_PYTHON_NAMES = {
    "ca_file": "ssl_cafile",
    "cert_file": "ssl_certfile",
    "key_file": "ssl_keyfile",
    "sasl_mechanism": "sasl_mechanism",
    "username": "sasl_plain_username",
    "password": "sasl_plain_password",
}


class ConnectionErrors:
    """The `error_cb` of a client: keeps and logs why Kafka refuses the connection.

    librdkafka tries again forever, and a call that waits for it only says that it timed out.
    """

    def __init__(
        self, kafka: KafkaSettings, then: Callable[[KafkaError], None] | None = None
    ) -> None:
        self._kafka, self._then = kafka, then
        self.refusal: str | None = None

    def __call__(self, error: KafkaError) -> None:
        refusal = _refusal(error.name(), error.str())
        if refusal and refusal != self.refusal:
            self.refusal = refusal
            log.error("kafka refuses the connection", server=self._kafka.bootstrap, reason=refusal)
        if self._then is not None:
            self._then(error)

    def reason(self, error: KafkaError) -> str:
        """Why a call failed: the refusal, if there was one."""
        return self.refusal or str(error.str())


def create_producer(
    kafka: KafkaSettings, options: Mapping[str, Any], errors: ConnectionErrors | None = None
) -> Producer:
    """A producer with these options of librdkafka."""
    from confluent_kafka import Producer

    return Producer(_librdkafka(kafka, errors) | dict(options))


def create_consumer(
    kafka: KafkaSettings, options: Mapping[str, Any], errors: ConnectionErrors | None = None
) -> Consumer:
    """A consumer with these options of librdkafka."""
    from confluent_kafka import Consumer

    return Consumer(_librdkafka(kafka, errors) | dict(options))


def create_admin(kafka: KafkaSettings) -> AdminClient:
    """An admin client of librdkafka."""
    from confluent_kafka.admin import AdminClient

    return AdminClient(_librdkafka(kafka, None))


def python_producer(kafka: KafkaSettings, **options: Any) -> KafkaProducer:
    """A producer of kafka-python. Raises Unavailable."""
    from kafka import KafkaProducer

    return _created(KafkaProducer, kafka, options)


def python_consumer(kafka: KafkaSettings, **options: Any) -> KafkaConsumer:
    """A consumer of kafka-python. Raises Unavailable."""
    from kafka import KafkaConsumer

    return _created(KafkaConsumer, kafka, options)


def python_admin(kafka: KafkaSettings, **options: Any) -> KafkaAdminClient:
    """An admin client of kafka-python. Raises Unavailable."""
    from kafka import KafkaAdminClient

    return _created(KafkaAdminClient, kafka, options)


def python_unavailable(kafka: KafkaSettings, error: Exception) -> Unavailable:
    """The error of a call of kafka-python, with the setting to check."""
    reason = str(error) or type(error).__name__
    if kafka.security_protocol != "PLAINTEXT":  # it does not say whether the broker refused it
        reason += f"; if it runs, check {_LOGIN_SETTINGS} and AFTERCLICK_KAFKA__CA_FILE"
    return Unavailable(f"Kafka at {kafka.bootstrap}: {reason}")


def spark_options(kafka: KafkaSettings) -> dict[str, str]:
    """Options of Spark's Kafka source and sink."""
    return {f"kafka.{name}": value for name, value in java_properties(kafka).items()}


def java_properties(kafka: KafkaSettings) -> dict[str, str]:
    """Properties of Kafka's Java clients and tools."""
    properties = {"bootstrap.servers": kafka.bootstrap}
    if kafka.security_protocol != "PLAINTEXT":
        properties["security.protocol"] = kafka.security_protocol
    if kafka.uses_tls and kafka.ca_file is not None:
        properties |= {
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(kafka.ca_file),
        }
    if kafka.uses_tls and kafka.cert_file is not None and kafka.key_file is not None:
        properties |= {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.certificate.chain": kafka.cert_file.read_text(),
            "ssl.keystore.key": kafka.key_file.read_text(),
        }
    if kafka.uses_sasl:
        properties |= {
            "sasl.mechanism": kafka.sasl_mechanism,
            "sasl.jaas.config": jaas_config(
                kafka.sasl_mechanism, username=kafka.username or "", password=_password(kafka)
            ),
        }
    return properties


def jaas_config(mechanism: str, **options: str) -> str:
    """A line of Java's JAAS for a mechanism, with quoted values."""
    module = "plain.PlainLoginModule" if mechanism == "PLAIN" else "scram.ScramLoginModule"
    words = [f"org.apache.kafka.common.security.{module} required"]
    for name, value in options.items():
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        words.append(f'{name}="{quoted}"')
    return " ".join(words) + ";"


def _librdkafka(kafka: KafkaSettings, errors: ConnectionErrors | None) -> dict[str, Any]:
    config: dict[str, Any] = {
        "bootstrap.servers": kafka.bootstrap,
        "security.protocol": kafka.security_protocol,
        "error_cb": errors or ConnectionErrors(kafka),
        "log_level": 0,  # errors reach `error_cb`
    }
    return config | _named(kafka, _LIBRDKAFKA_NAMES)


def _kafka_python(kafka: KafkaSettings) -> dict[str, Any]:
    config: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap.split(","),
        "bootstrap_timeout_ms": 10_000,
        "security_protocol": kafka.security_protocol,
    }
    return config | _named(kafka, _KAFKA_PYTHON_NAMES)


def _named(kafka: KafkaSettings, names: Mapping[str, str]) -> dict[str, Any]:
    """The settings of TLS and SASL that are given, under a library's names."""
    given = kafka.model_dump(include=set(names), exclude_none=True)
    login = ("sasl_mechanism", "username", "password") if kafka.uses_sasl else ()
    files = ("ca_file", "cert_file", "key_file") if kafka.uses_tls else ()
    given["password"] = _password(kafka)
    return {names[field]: str(given[field]) for field in (*files, *login) if field in given}


def _created(kind: Any, kafka: KafkaSettings, options: dict[str, Any]) -> Any:
    from kafka.errors import KafkaError

    try:
        return kind(**_kafka_python(kafka) | options)
    except (KafkaError, OSError) as error:
        raise python_unavailable(kafka, error) from None


def _password(kafka: KafkaSettings) -> str:
    return kafka.password.get_secret_value() if kafka.password is not None else ""


def _refusal(name: str, text: str) -> str | None:
    """What to check after an error of librdkafka; None: it is no refusal."""
    if name == "_AUTHENTICATION":
        return f"it rejects the user name or the password: check {_LOGIN_SETTINGS}"
    if name == "_SSL" and "certificate verify failed" in text:
        return "its certificate is not trusted: check AFTERCLICK_KAFKA__CA_FILE"
    if name == "_SSL":
        return f"TLS fails ({text}): check AFTERCLICK_KAFKA__CA_FILE and …__CERT_FILE"
    return None
