"""Texts about connections to RabbitMQ that fail because of a certificate or a login."""

import pytest
from aiormq.exceptions import (
    AMQPConnectionError,
    AuthenticationError,
    ConnectionNotAllowed,
    ProbableAuthenticationError,
)

from otp_stream.connection_errors import no_connection, refusal, user

SECURE = "amqps://h/?cafile=/ca.pem&certfile=/c.pem&keyfile=/k.pem&auth=external"
PLAIN = "amqps://worker:n8Vq2x@h/?cafile=/ca.pem"


@pytest.mark.parametrize(
    ("url", "error", "text"),
    [
        (PLAIN, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert", "requires a client certificate"),
        (PLAIN, "[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] sslv3 alert", "refuses TLS; it may require a client certificate"),
        (
            PLAIN,
            "Server connection reset: ConnectionResetError(104)",
            "closes the connection after TLS; it may require",
        ),
        (
            SECURE,
            "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert",
            "refuses the client certificate: its authority is unknown",
        ),
        (SECURE, "[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] sslv3", "refuses the client certificate: it has expired"),
        (SECURE, "[SSL: SSLV3_ALERT_BAD_CERTIFICATE] sslv3", "refuses the client certificate (bad certificate)"),
        (
            SECURE,
            "Server connection reset: ConnectionResetError(104)",
            "closes the connection after TLS; it may refuse",
        ),
        (
            SECURE,
            "[Errno 2] No such file or directory",
            "was not asked: the files of RABBITMQ_URL cannot be used (cafile=",
        ),
        (SECURE, "[X509: KEY_VALUES_MISMATCH] key values mismatch", "was not asked: the files of RABBITMQ_URL cannot"),
        (SECURE, "[Errno 111] Connection refused", "does not answer ([Errno 111] Connection refused)"),
        (SECURE, "[Errno -2] Name or service not known", "does not answer ([Errno -2]"),
        (
            SECURE,
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed",
            "has a certificate that is not accepted: not verified; set the CA that signed it: cafile=",
        ),
        (
            "amqp://u:n8Vq2x@h/",
            "Server connection reset: ConnectionResetError(104)",
            "does not answer (Server connection",
        ),
    ],
)
def test_what_a_failed_connection_means(url: str, error: str, text: str) -> None:
    found = no_connection(AMQPConnectionError(error), url)
    assert found.startswith(text)
    assert "n8Vq2x" not in found


def test_a_login_by_certificate_is_refused_with_its_own_fix() -> None:
    refused, fix = refusal(ProbableAuthenticationError("ACCESS_REFUSED"), SECURE) or ("", "")
    assert refused == "refuses the login by the client certificate"
    assert "ssl_cert_login_from" in fix
    refused, fix = refusal(AuthenticationError("PLAIN", ["PLAIN", "EXTERNAL"]), SECURE) or ("", "")
    assert refused == "offers no login by a certificate (SASL EXTERNAL)"
    assert "rabbitmq_auth_mechanism_ssl" in fix
    refused, _ = refusal(ConnectionNotAllowed("vhost / not found"), SECURE) or ("", "")
    assert "<user of the certificate> may not use it" in refused


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (SECURE, "<user of the certificate>"), (SECURE.replace("external", "EXTERNAL"), "<user of the certificate>"),
        (PLAIN, "worker"), ("amqp://h", "guest"),
    ],
)  # fmt: skip
def test_who_logs_in(url: str, name: str) -> None:
    assert user(url) == name
