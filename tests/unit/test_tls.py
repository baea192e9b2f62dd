"""What a client offers in a TLS handshake."""

import ssl
from pathlib import Path

import pytest
from certificates import DAY, NOW
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from otp_stream.tls import client_context

GROUP = Path(__file__).parent.parent / "relay_scripts/ffdhe2048.pem"


@pytest.fixture
def server(tmp_path: Path) -> ssl.SSLContext:
    """A TLS 1.2 server with an RSA key, a group for Diffie-Hellman, and no certificate that a client accepts."""
    key = rsa.generate_private_key(65537, 2048)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .sign(key, hashes.SHA256())
    )
    pem, clear = serialization.Encoding.PEM, serialization.NoEncryption()
    file = tmp_path / "server.pem"
    file.write_bytes(
        certificate.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, clear)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(file)
    context.load_dh_params(str(GROUP))
    return context


def refusal(client: ssl.SSLContext, server: ssl.SSLContext) -> str:
    """Return OpenSSL's reason for the end of a handshake."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(back, there, server_hostname="server"), server.wrap_bio(there, back, server_side=True)
    for _ in range(5):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                return str(error.reason)
    return ""


def test_a_client_computes_no_diffie_hellman_of_a_size_that_the_server_chooses(server: ssl.SSLContext):
    server.set_ciphers("DHE-RSA-AES256-GCM-SHA384")
    # what Python offers by default gets as far as the certificate
    assert refusal(ssl.create_default_context(), server) == "CERTIFICATE_VERIFY_FAILED"
    assert refusal(client_context(), server) == "NO_SHARED_CIPHER"


def test_a_client_accepts_elliptic_curves_in_tls_1_2(server: ssl.SSLContext):
    server.set_ciphers("ECDHE-RSA-AES256-GCM-SHA384")
    assert refusal(client_context(), server) == "CERTIFICATE_VERIFY_FAILED"
