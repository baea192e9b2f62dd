"""Write docs/sealing-vectors.json: keys with tokens that open and tokens that must not, for producers in any language.

Each run makes other tokens, because each token has a new IV, so the file is written only when the cases change.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from otp_stream.core import jwe
from otp_stream.core.sealing_keys import keys_of, new_jwk

FILE = Path(__file__).parent.parent / "docs" / "sealing-vectors.json"
EMAIL, CODE, JOB_ID = "user@example.com", "739154", "login-42"
_ABOUT = (
    "The private keys of these vectors are public: never use them. A worker with all of them opens each token in "
    "`valid` for a job with this `email` and `jobId`, and gets `otp`. It refuses each token in `invalid`."
)


def _token(key: jwe.Key, plaintext: str = CODE, **fields: Any) -> str:
    cipher, of_cipher = key.new_cipher()
    usual = {"alg": key.alg, "enc": "A256GCM", "kid": key.kid, "email": EMAIL, "jobId": JOB_ID, **of_cipher}
    header = {name: it for name, it in (usual | fields).items() if it is not None}
    protected, iv = jwe.encode(json.dumps(header, separators=(",", ":")).encode()), os.urandom(12)
    sealed = cipher.encrypt(iv, plaintext.encode(), protected)
    return b".".join([protected, b"", *map(jwe.encode, (iv, sealed[:-16], sealed[-16:]))]).decode()


def vectors() -> dict[str, Any]:
    """Return the content of the file."""
    jwks = [new_jwk(kind) for kind in ("oct", "p256", "x25519")]
    keys = {name: keys_of(jwk).first for name, jwk in zip(("oct", "P-256", "X25519"), jwks, strict=True)}
    shared, pair = keys["oct"], keys["P-256"]
    job = {"email": EMAIL, "jobId": JOB_ID, "otp": CODE}
    valid = [{"about": f"a code, by the key {name}", **job, "otpSealed": _token(key)} for name, key in keys.items()]
    no_id, unicode = {"email": EMAIL, "otp": CODE}, {"email": "zoë@straße.example", "jobId": "j ü", "otp": "Код-42"}
    valid += [
        {"about": "a job without jobId", **no_id, "otpSealed": _token(shared, jobId=None)},
        {"about": "text that is not ASCII", **unicode,
         "otpSealed": _token(shared, unicode["otp"], email=unicode["email"], jobId=unicode["jobId"])},
        {"about": "other header parameters are ignored", **job, "otpSealed": _token(shared, typ="JOSE")},
    ]  # fmt: skip
    token = _token(shared)
    parts = token.split(".")
    flipped = "A" if parts[4][0] != "A" else "B"
    cases = {
        "another recipient": _token(pair, email="other@example.com"),
        "another jobId": _token(pair, jobId="login-43"),
        "no email in the header": _token(pair, email=None),
        "no jobId in the header": _token(pair, jobId=None),
        "the tag was changed": ".".join([*parts[:4], flipped + parts[4][1:]]),
        "the header was replaced": ".".join([_token(pair).split(".")[0], *parts[1:]]),
        "alg is that of another key": _token(shared, alg="ECDH-ES"),
        "kid is that of another key": _token(shared, kid=pair.kid),
        "enc is not A256GCM": _token(shared, enc="A128CBC-HS256"),
        "zip": _token(shared, zip="DEF"),
        "crit": _token(shared, crit=["exp"], exp=1),
        "epk is not on the curve": _token(pair, epk={"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43}),
        "padding": f"{token}==",
        "a part is missing": ".".join(parts[:4]),
        "a code of three characters": _token(shared, "123"),
    }
    invalid = [{"about": about, "email": EMAIL, "jobId": JOB_ID, "otpSealed": it} for about, it in cases.items()]
    return {"about": _ABOUT, "keys": jwks, "valid": valid, "invalid": invalid}


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
