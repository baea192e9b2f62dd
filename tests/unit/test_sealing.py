"""Codes as JWE: what opens, what does not, and what is published of a body."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwe as joserfc_jwe
from joserfc import jwk as joserfc_jwk

from otp_stream.core import jwe
from otp_stream.core.body_at_rest import at_rest
from otp_stream.core.erasure import without_code
from otp_stream.core.otp_job import MAX_BODY_BYTES, KeyMissingError, MalformedError, OtpJob
from otp_stream.core.sealed_body import JOSE, Content, is_sealed, open_body
from otp_stream.core.sealed_code import open_code, seal_code
from otp_stream.core.sealing_keys import NO_KEYS, SealingKeys, keys_of, new_jwk, read_keys

EMAIL, CODE, JOB_ID = "user@example.com", "739154", "j-1"
JWKS = {kind: new_jwk(kind) for kind in ("oct", "p256", "x25519")}
KEYS = {kind: keys_of(jwk) for kind, jwk in JWKS.items()}
ALL = keys_of({"keys": list(JWKS.values())})


def unnamed(_: object) -> str:
    """Return the name of a case with random keys: every process of a run has to name its tests alike."""
    return "case"


each_kind = pytest.mark.parametrize("kind", KEYS)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def sealed_job(keys: SealingKeys, code: str = CODE, **fields: Any) -> dict[str, Any]:
    job = {"email": EMAIL, "jobId": JOB_ID, **fields}
    return {**job, "otpSealed": seal_code(keys, code, EMAIL, JOB_ID)}


def as_body(fields: Any) -> bytes:
    return json.dumps(fields).encode()


def read(fields: Any, keys: SealingKeys = ALL) -> OtpJob:
    return OtpJob.from_bytes(as_body(fields), keys=keys)


def token_of(header: dict[str, Any], plaintext: bytes = CODE.encode(), kind: str = "oct") -> str:
    """Return a token whose header has these fields in place of the usual ones; `None` leaves one out."""
    key = KEYS[kind].first
    cipher, of_cipher = key.new_cipher()
    usual = {"alg": key.alg, "enc": "A256GCM", "kid": key.kid, "email": EMAIL, "jobId": JOB_ID, **of_cipher}
    fields = {name: value for name, value in {**usual, **header}.items() if value is not None}
    protected = jwe.encode(json.dumps(fields).encode())
    sealed = cipher.encrypt(bytes(12), plaintext, protected)
    return b".".join([protected, b"", *map(jwe.encode, (bytes(12), sealed[:-16], sealed[-16:]))]).decode()


@each_kind
@given(code=st.text("abcXYZ0189-äß", min_size=4, max_size=64), job_id=st.none() | st.text("abc -_/09é", max_size=200))
def test_a_code_opens_for_the_job_for_which_it_was_sealed(kind: str, code: str, job_id: str | None) -> None:
    token = seal_code(KEYS[kind], code, EMAIL, job_id)
    assert len(code) < 8 or code not in token  # a shorter one may be in its random characters
    assert open_code(ALL, token, EMAIL, job_id) == code


@each_kind
def test_a_sealed_job_is_the_job_with_the_plain_code(kind: str) -> None:
    found = read(sealed_job(KEYS[kind], metadata={"userName": "John"}, timestamp=1_700_000_000_000))
    plain = read({"email": EMAIL, "otp": CODE, "jobId": JOB_ID, "metadata": {"userName": "John"},
                  "timestamp": 1_700_000_000_000})  # fmt: skip
    assert found == plain
    assert found.lenient == ()
    assert CODE not in repr(found)


@each_kind
def test_no_two_tokens_are_equal(kind: str) -> None:
    assert len({seal_code(KEYS[kind], CODE, EMAIL, JOB_ID) for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"email": " User@EXAMPLE.com "}, "User@example.com"),
        ({"email": "user@straße.example"}, "user@xn--strae-oqa.example"),
        ({"jobId": 42}, "user@example.com"),
        ({"jobId": ""}, "user@example.com"),
        ({"jobId": None}, "user@example.com"),
        ({"jobId": "x" * 500}, "user@example.com"),
    ],
)
def test_a_producer_may_seal_with_the_values_that_it_writes_into_the_job(fields: dict[str, Any], expected: str) -> None:
    job = {"email": EMAIL, "jobId": JOB_ID, **fields}
    header = {"email": job["email"], "jobId": job["jobId"]}
    found = read({**job, "otpSealed": token_of(header)})
    assert (found.email, found.otp) == (expected, CODE)


@pytest.mark.parametrize(
    ("sealed_for", "metadata"),
    [
        ("acme", {"tenant": "acme"}),
        (" acme", {"tenant": "acme "}),
        (7, {"tenant": "7"}),
        ("", {}),
        (None, {"tenant": "acme"}),
    ],
)
def test_a_code_opens_for_its_tenant_and_for_any_if_the_header_names_none(
    sealed_for: object, metadata: dict[str, Any]
) -> None:
    job = {"email": EMAIL, "jobId": JOB_ID, "metadata": metadata}
    assert read({**job, "otpSealed": token_of({"tenant": sealed_for})}).otp == CODE


@pytest.mark.parametrize(
    ("sealed_for", "metadata"),
    [("acme", {"tenant": "evil"}), ("acme", {}), ("", {"tenant": "evil"}), ({"a": 1}, {"tenant": "evil"})],
)
def test_a_code_does_not_open_for_another_tenant_whose_relay_would_get_it(
    sealed_for: object, metadata: dict[str, Any]
) -> None:
    job = {"email": EMAIL, "jobId": JOB_ID, "metadata": metadata}
    with pytest.raises(MalformedError, match=r"^otpSealed: was sealed for another tenant"):
        read({**job, "otpSealed": token_of({"tenant": sealed_for})})


def test_a_code_that_the_worker_seals_stays_with_its_tenant() -> None:
    body = at_rest(Content(as_body({"email": EMAIL, "otp": CODE, "metadata": {"tenant": "acme"}})), ALL).body
    assert OtpJob.from_bytes(body, keys=ALL).otp == CODE
    with pytest.raises(MalformedError, match="another tenant"):
        OtpJob.from_bytes(body.replace(b'"acme"', b'"evil"'), keys=ALL)


def test_the_name_may_be_in_snake_case_or_escaped_and_the_body_may_have_a_mark() -> None:
    job = sealed_job(ALL)
    token = job.pop("otpSealed")
    assert read({**job, "otp_sealed": token}).otp == CODE
    assert read({**job, "otpSealed": f"  {token}\n"}).otp == CODE
    body = as_body({**job, "otpSealed": token})
    assert OtpJob.from_bytes(b"\xef\xbb\xbf" + body, keys=ALL).otp == CODE
    assert OtpJob.from_bytes(body.replace(b"otpSealed", b"otp\\u0053ealed"), keys=ALL).otp == CODE
    assert OtpJob.from_bytes(body[:-1] + b', "userName": "a\\qb"}', keys=ALL).otp == CODE


def test_of_two_codes_the_valid_plain_one_is_used() -> None:
    sealed = sealed_job(ALL)
    both = read({**sealed, "otp": "424242"})
    assert (both.otp, [tuple(it) for it in both.lenient]) == ("424242", [("otpSealed", "ignored")])
    for absent in (None, ""):
        assert (read({**sealed, "otp": absent}).otp, read({**sealed, "otp": absent}).lenient) == (CODE, ())
    invalid = read({**sealed, "otp": 739154})
    assert (invalid.otp, [tuple(it) for it in invalid.lenient]) == (CODE, [("otp", "ignored")])
    broken = read({"email": EMAIL, "otp": "424242", "otpSealed": "broken"}, NO_KEYS)
    assert (broken.otp, [tuple(it) for it in broken.lenient]) == ("424242", [("otpSealed", "ignored")])


def test_an_optional_field_that_cannot_be_read_costs_no_sealed_code() -> None:
    found = read(sealed_job(ALL, retryCount="x", timestamp="yesterday", metadata=[], priority=7))
    assert found.otp == CODE
    assert {it.field for it in found.lenient} == {"retryCount", "timestamp", "metadata", "priority"}


def test_a_sealed_job_is_read_strictly_and_leniently_like_a_plain_one() -> None:
    body = as_body(sealed_job(ALL, priority="urgent"))
    with pytest.raises(MalformedError, match=r"^priority: Input should be 'low', 'normal' or 'high'$"):
        OtpJob.from_bytes(body, keys=ALL, strict=True)
    assert OtpJob.from_bytes(body, keys=ALL).priority == "normal"
    with pytest.raises(MalformedError, match=r"^email: is required$"):
        OtpJob.from_bytes(as_body({"otpSealed": "x"}), keys=ALL)
    seconds = as_body(sealed_job(ALL, timestamp=1_700_000_000))
    assert OtpJob.from_bytes(seconds, keys=ALL).timestamp == 1_700_000_000_000
    assert OtpJob.from_bytes(seconds, keys=ALL, strict=True).timestamp == 1_700_000_000
    broken = OtpJob.from_bytes(as_body(sealed_job(ALL))[:-1] + b', "x": "a\\qb"}', keys=ALL)
    assert (broken.otp, [tuple(it) for it in broken.lenient]) == (CODE, [("body", "coerced")])


def changed(token: str, part: int, at: int = 0) -> str:
    parts = token.split(".")
    letter = parts[part][at]
    parts[part] = f"{parts[part][:at]}{'A' if letter != 'A' else 'B'}{parts[part][at + 1 :]}"
    return ".".join(parts)


_TOKEN = token_of({})
_EC = token_of({}, kind="p256")
_X = token_of({}, kind="x25519")


@pytest.mark.parametrize(
    "token",
    [
        7, True, ["a"], {"a": 1}, "....", "a.b.c", _TOKEN[:-1], f"{_TOKEN}.", f"{_TOKEN}=",
        _TOKEN.replace("..", ".AAAA."),         _TOKEN.replace("..", ". ."), f"{_TOKEN}é", "eyJ" * 10_000,
        changed(_TOKEN, 2), changed(_TOKEN, 3),
        changed(_TOKEN, 4), changed(_TOKEN, 0, 30),
        token_of({"enc": "A128GCM"}), token_of({"enc": None}), token_of({"enc": ["A256GCM"]}),
        token_of({"alg": "RSA-OAEP"}), token_of({"alg": "none"}), token_of({"alg": None}), token_of({"alg": ["dir"]}),
        token_of({"zip": "DEF"}), token_of({"crit": ["exp"], "exp": 1}), token_of({"crit": []}), token_of({"kid": 7}),
        token_of({"kid": KEYS["p256"].first.kid}), token_of({"kid": KEYS["oct"].first.kid}, kind="p256"),
        token_of({"kid": KEYS["x25519"].first.kid}, kind="p256"), token_of({"alg": "ECDH-ES"}),
        token_of({"alg": "dir"}, kind="p256"),
        token_of({"epk": None}, kind="p256"), token_of({"epk": 7}, kind="p256"), token_of({"epk": {}}, kind="p256"),
        token_of({"epk": {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}}, kind="p256"),
        token_of({"epk": {"kty": "EC", "crv": "P-256", "x": 7, "y": 7}}, kind="p256"),
        token_of({"epk": {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43}}, kind="p256"),
        token_of({"epk": {"kty": "OKP", "crv": "X25519", "x": "A" * 43}}, kind="x25519"),
        token_of({"apu": 7}, kind="p256"), token_of({"apu": "A"}, kind="p256"), token_of({"apu": "AA"}, kind="p256"),
        token_of({"email": None}), token_of({"email": "other@example.com"}), token_of({"email": 7}),
        token_of({"email": "not an address"}), token_of({"jobId": None}), token_of({"jobId": "j-2"}),
        token_of({}, b"123"), token_of({}, b"1234 56"), token_of({}, b"\xff\xfe12"), token_of({}, b""),
        token_of({}, b"1" * 65),
        "eyJhbGciOiJkaXIifQ..AAAAAAAAAAAAAAAA..AAAAAAAAAAAAAAAAAAAAAA", "W10..AAAAAAAAAAAAAAAA..AAAAAAAAAAAAAAAAAAAAAA",
        "e30..AAAAAAAAAAAAAAAA..AAAAAAAAAAAAAAAAAAAAAA", "_w..AAAAAAAAAAAAAAAA..AAAAAAAAAAAAAAAAAAAAAA",
    ],
    ids=unnamed,
)  # fmt: skip
def test_what_does_not_open_is_malformed_and_quotes_nothing(token: Any) -> None:
    with pytest.raises(MalformedError, match=r"^otpSealed: ") as caught:
        read({"email": EMAIL, "jobId": JOB_ID, "otpSealed": token})
    assert not isinstance(caught.value, KeyMissingError)
    text = str(caught.value)
    assert not any(it in text for it in (CODE, EMAIL, "other@", "RSA", "j-2", "exp"))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda it: it.decode("latin-1")))
def test_no_text_as_a_token_raises_anything_else(text: str) -> None:
    with pytest.raises(MalformedError):
        read({"email": EMAIL, "jobId": JOB_ID, "otpSealed": text or None})


@given(st.data())
def test_a_token_with_any_other_character_does_not_open(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(KEYS)))
    token = seal_code(KEYS[kind], CODE, EMAIL, JOB_ID)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from("ABCDwxyz0189-_.="))
    if token[at] != other:
        with pytest.raises(MalformedError):
            read({"email": EMAIL, "jobId": JOB_ID, "otpSealed": f"{token[:at]}{other}{token[at + 1 :]}"})


@each_kind
def test_a_key_that_is_gone_is_named_if_its_name_was_made(kind: str) -> None:
    job = sealed_job(KEYS[kind])
    others = keys_of({"keys": [new_jwk("oct"), new_jwk("p256"), new_jwk("x25519")]})
    for keys in (NO_KEYS, others):
        with pytest.raises(
            KeyMissingError, match=r"^otpSealed: is sealed with a key that is not in SEALING_KEYS"
        ) as it:
            read(job, keys)
        assert KEYS[kind].first.kid in str(it.value)
    short = keys_of({**JWKS[kind], "kid": CODE})
    with pytest.raises(KeyMissingError) as caught:
        read(sealed_job(short))
    assert CODE not in str(caught.value)


@each_kind
def test_a_token_without_a_kid_opens_with_the_key_that_fits(kind: str) -> None:
    job = {"email": EMAIL, "jobId": JOB_ID, "otpSealed": token_of({"kid": None}, kind=kind)}
    assert read(job).otp == CODE
    with pytest.raises(KeyMissingError, match="names no key"):
        read(job, keys_of(new_jwk("oct")))


def test_a_producer_with_the_public_key_cannot_open() -> None:
    public = read_keys(json.dumps(KEYS["p256"].public()), sealing_only=True)
    job = sealed_job(public)
    assert read(job, KEYS["p256"]).otp == CODE
    with pytest.raises(KeyMissingError):
        read(job, public)


# keys


@pytest.mark.parametrize(
    ("jwks", "error"),
    [
        ("", "JWK Set"), ("[]", "JWK Set"), ('{"keys": []}', "one key or more"), ('{"keys": 7}', "one key or more"),
        ("7", "JWK Set"), ("[" * 100_000, "JWK Set"),
        ({"keys": [JWKS["oct"], 7]}, "key 2: is not a JSON object"),
        ({"keys": [JWKS["oct"], JWKS["oct"]]}, "key 2: has the same kid"),
        ({"keys": [{**JWKS["oct"], "kid": f"k{n}"} for n in range(17)]}, "more than 16 keys"),
        ({**JWKS["oct"], "kty": "RSA"}, "key 1: has another kty or crv than can be used: supported are oct"),
        ({**JWKS["oct"], "kty": ["oct"]}, "supported are oct"), ({"kty": "oct"}, "k must be 32 bytes"),
        ({**JWKS["oct"], "k": "AAAA"}, "k must be 32 bytes"), ({**JWKS["oct"], "k": 7}, "k must be 32 bytes"),
        ({**JWKS["oct"], "k": JWKS["oct"]["k"] + "="}, "k must be 32 bytes"), ({"kty": "oct", "k": "A" * 43}, "random"),
        ({**JWKS["oct"], "kid": ""}, "kid"), ({**JWKS["oct"], "kid": 7}, "kid"),
        ({**JWKS["oct"], "kid": "x" * 201}, "kid"),
        ({**JWKS["oct"], "use": "sig"}, "use other than enc"), ({**JWKS["oct"], "alg": "A256KW"}, "another alg"),
        ({**JWKS["oct"], "alg": ["dir"]}, "another alg"), ({**JWKS["oct"], "enc": "A128GCM"}, "another enc"),
        ({**JWKS["p256"], "alg": "dir"}, "another alg than ECDH-ES"), ({**JWKS["p256"], "crv": "P-384"}, "supported"),
        ({**JWKS["x25519"], "crv": "Ed25519"}, "supported"), ({**JWKS["x25519"], "crv": "P-256"}, "supported"),
        ({**JWKS["p256"], "d": JWKS["x25519"]["d"]}, "d does not belong to x and y"),
        ({**JWKS["x25519"], "d": JWKS["p256"]["d"]}, "d does not belong to x"),
        ({**JWKS["p256"], "d": "A" * 43}, "d is not valid for P-256"), ({**JWKS["p256"], "d": 7}, "d must be 32 bytes"),
        ({**JWKS["p256"], "y": JWKS["p256"]["x"]}, "not on the curve"),
        (KEYS["p256"].public(), "key 1: is a public key; a worker needs the private one"),
    ],
)  # fmt: skip
def test_a_bad_key_is_refused_with_its_position_and_nothing_of_it(jwks: Any, error: str) -> None:
    text = jwks if isinstance(jwks, str) else json.dumps(jwks)
    with pytest.raises(ValueError, match=r".") as caught:
        read_keys(text)
    assert error in str(caught.value)
    assert not any(jwk.get(name, "-none-") in str(caught.value) for jwk in JWKS.values() for name in ("k", "d", "x"))


def test_a_kid_is_the_thumbprint_of_rfc_7638_if_it_is_absent() -> None:
    for jwk in JWKS.values():
        without = {name: value for name, value in jwk.items() if name != "kid"}
        assert keys_of(without).first.kid == jwk["kid"]


def test_what_a_key_publishes_of_itself_has_no_secret() -> None:
    public = json.dumps(ALL.public())
    assert [it["crv"] for it in ALL.public()["keys"]] == ["P-256", "X25519"]
    for text in (public, repr(ALL), repr(KEYS)):
        assert not any(JWKS[kind][name] in text for kind, name in (("oct", "k"), ("p256", "d"), ("x25519", "d")))


# bodies at rest


def stored(body: bytes, keys: SealingKeys = ALL) -> Content:
    found = at_rest(Content(body, "application/json", "identity"), keys)
    assert CODE.encode() not in found.body
    return found


def test_a_plain_job_gets_a_sealed_code_and_is_the_same_job() -> None:
    job = {"email": "User@Example.com", "otp": f" {CODE} ", "jobId": 42, "retryCount": 1, "extra": {"ü": [1.5, None]},
           "metadata": {"userName": "Zoë"}}  # fmt: skip
    found = stored(as_body(job))
    assert (found.content_type, found.content_encoding) == ("application/json", "identity")
    fields = json.loads(found.body)
    token = fields.pop("otpSealed")
    assert fields == {name: value for name, value in job.items() if name != "otp"}
    assert OtpJob.from_bytes(found.body, keys=ALL) == OtpJob.from_bytes(as_body(job))
    again = stored(found.body)
    assert json.loads(again.body)["otpSealed"] == token


def test_without_keys_a_body_stays_as_it_is() -> None:
    body = b' {"email": "user@example.com", "otp": "739154"}'
    assert at_rest(Content(body, "text/plain"), NO_KEYS) == Content(body, "text/plain")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"no json 739154", b'{"email": "user@example.com", "otp": 739154}', b'{"email": 7, "otp": "739154"}',
        b'["739154"]', b'"739154"', b"\x1f\x8b\x00739154", b"\xff\xfe7\x003\x009\x00", b"x739154" * 100_000,
        b"eyJ 739154", b"eyJh..AAAAAAAAAAAAAAAA.739154.AAAAAAAAAAAAAAAAAAAAAA",
        as_body({"email": EMAIL, "otp": CODE, "metadata": {"pin": CODE}}),
        as_body({"email": EMAIL, "otp": CODE, "metadata": {"pin": 739154}}),
        as_body({"email": EMAIL, "otp": CODE, "metadata": {"text": "use 739 154 now"}}),
        as_body({"email": EMAIL, "otp": CODE, "metadata": {"text": "NzM5MTU0"}}),
        as_body({"email": EMAIL, "otp": CODE, "jobId": f"login-{CODE}"}),
        as_body({"email": EMAIL, "otp": CODE, CODE: 1}),
        as_body({"email": f"{CODE}@example.com", "otp": CODE}),
        as_body({"email": EMAIL, "otp": CODE, "x": "y" * 4_000}),
        as_body({"email": EMAIL, "otp": CODE, "x": "y" * (MAX_BODY_BYTES - 80)}),
        as_body({"email": EMAIL, "jobId": JOB_ID, "otp": 739154, "otpSealed": "broken"}),
        as_body({**sealed_job(keys_of(new_jwk("oct"))), "otp": 739154}),
        as_body({**sealed_job(ALL), "metadata": {"pin": CODE}}),
    ],
    ids=unnamed,
)  # fmt: skip
def test_a_body_whose_code_may_be_anywhere_is_sealed_as_a_whole(body: bytes) -> None:
    found = stored(body)
    assert (found.content_type, found.content_encoding) == (JOSE, None)
    assert is_sealed(found.body)
    assert open_body(ALL, found.body) == Content(body, "application/json", "identity")
    assert stored(found.body).body == found.body
    with pytest.raises(KeyMissingError, match=r"^body: is sealed with a key that is not in SEALING_KEYS"):
        OtpJob.from_bytes(found.body)


def test_a_second_field_of_the_same_name_does_not_stay() -> None:
    token = seal_code(ALL, CODE, EMAIL, None)
    body = b'{"email": "user@example.com", "otp": "739154", "otp": null, "otpSealed": "%b"}' % token.encode()
    assert json.loads(stored(body).body).keys() == {"email", "otpSealed"}
    other = keys_of(new_jwk("oct"))
    assert is_sealed(stored(body, other).body)


def test_a_code_sealed_with_an_older_key_is_sealed_again_with_the_first() -> None:
    new = new_jwk("oct")
    both = keys_of({"keys": [new, JWKS["oct"]]})
    body = as_body(sealed_job(KEYS["oct"]))
    assert OtpJob.from_bytes(stored(body, both).body, keys=keys_of(new)).otp == CODE


def test_a_body_whose_key_is_missing_stays_as_it_is() -> None:
    body = as_body(sealed_job(keys_of(new_jwk("oct"))))
    assert stored(body).body == body


@given(texts, texts)
def test_the_tag_covers_a_whole_body_and_its_description(body: str, content_type: str) -> None:
    content = Content(body.encode(), content_type if content_type.isascii() else None)
    found = open_body(ALL, at_rest(content, KEYS["oct"]).body)
    assert found.body == content.body


def test_a_sealed_code_is_no_sealed_body() -> None:
    token = seal_code(ALL, '{"email": "user@example.com", "otp": "739154"}', EMAIL, None)
    with pytest.raises(MalformedError, match=r"^body: is the sealed code of a job"):
        OtpJob.from_bytes(token.encode(), keys=ALL)
    whole = at_rest(Content(b"no job"), ALL).body.decode()
    with pytest.raises(MalformedError, match="sealed for another recipient"):
        read({"email": EMAIL, "otpSealed": whole})


def test_an_erased_body_has_no_code_in_any_form() -> None:
    sealed = sealed_job(ALL)
    for fields in (sealed, {**sealed, "otp": CODE}, {**sealed, "otp_sealed": sealed["otpSealed"]}):
        for code in (CODE, ""):  # of a sealed code whose key is missing, the code is not known
            assert json.loads(without_code(as_body(fields), code)) == {"email": EMAIL, "jobId": JOB_ID}
    assert OtpJob.without_code(as_body(sealed)).otp == ""


# other implementations

VECTORS = json.loads((Path(__file__).parents[2] / "docs" / "sealing-vectors.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda it: it["about"])
def test_each_valid_vector_opens(vector: dict[str, Any]) -> None:
    keys = keys_of({"keys": VECTORS["keys"]})
    job = {name: it for name, it in vector.items() if name not in {"about", "otp"}}
    assert read(job, keys).otp == vector["otp"]


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=lambda it: it["about"])
def test_no_invalid_vector_opens(vector: dict[str, Any]) -> None:
    with pytest.raises(MalformedError, match=r"^otpSealed: "):
        read(vector, keys_of({"keys": VECTORS["keys"]}))


@each_kind
def test_joserfc_opens_what_we_seal_and_seals_what_we_open(kind: str) -> None:
    key = joserfc_jwk.import_key(JWKS[kind])
    token = seal_code(KEYS[kind], CODE, EMAIL, JOB_ID)
    registry = joserfc_jwe.JWERegistry(strict_check_header=False)
    found = joserfc_jwe.decrypt_compact(token, key, registry=registry)
    assert (found.plaintext, found.protected["email"], found.protected["jobId"]) == (CODE.encode(), EMAIL, JOB_ID)
    first = KEYS[kind].first
    header = {"alg": first.alg, "enc": "A256GCM", "kid": first.kid, "email": EMAIL, "jobId": JOB_ID}
    for more in ({}, {"apu": "QWxpY2U", "apv": "Qm9i"}) if first.alg != "dir" else ({},):
        theirs = joserfc_jwe.encrypt_compact({**header, **more}, CODE.encode(), key, registry=registry)
        assert read({"email": EMAIL, "jobId": JOB_ID, "otpSealed": theirs}).otp == CODE


def test_the_key_of_a_token_is_derived_as_in_the_example_of_rfc_7518() -> None:
    # appendix C derives 128 bits for A128GCM from this shared secret
    shared = bytes([158, 86, 217, 29, 129, 113, 53, 211, 114, 131, 66, 131, 191, 132, 38, 156, 251, 49, 110, 163, 218,
                    128, 106, 72, 246, 218, 167, 121, 140, 254, 144, 196])  # fmt: skip
    found = jwe.concat_kdf(shared, b"A128GCM", b"Alice", b"Bob", 128)
    assert jwe.encode(found) == b"VqqN6vgjbSBcIijNcacQGg"


@pytest.mark.parametrize("value", ["x" * 256, "\N{EURO SIGN}", 1, None])
def test_a_sealed_body_has_no_property_that_amqp_cannot_carry(value: object) -> None:
    token = KEYS["p256"].seal({"cty": value, "contentEncoding": value}, b"{}")
    assert open_body(KEYS["p256"], token) == Content(b"{}", None, None)


def test_a_header_that_would_take_long_to_read_is_refused() -> None:
    token = KEYS["oct"].seal({"x": [[]] * 10_000}, b"{}")
    with pytest.raises(jwe.JweError, match="too long"):
        open_body(KEYS["oct"], token)
