"""The payloads that the documentation of each authentication server shows, and how these servers sign them."""

import hmac
import json
from base64 import b64decode, b64encode
from hashlib import sha256
from typing import Any

SUPABASE_SECRET = "v1,whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SUPABASE_KEY = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ZITADEL_KEY = "b3c9f01d7a62e845b3c9"

# https://supabase.com/docs/guides/auth/auth-hooks/send-email-hook
SUPABASE: dict[str, Any] = {
    "user": {
        "id": "8484b834-f29e-4af2-bf42-80644d154f76",
        "aud": "authenticated",
        "role": "authenticated",
        "email": "valid.email@supabase.io",
        "phone": "",
        "app_metadata": {"provider": "email", "providers": ["email"]},
        "user_metadata": {
            "email": "valid.email@supabase.io",
            "email_verified": False,
            "phone_verified": False,
            "sub": "8484b834-f29e-4af2-bf42-80644d154f76",
        },
        "identities": [
            {
                "identity_id": "bc26d70b-517d-4826-bce4-413a5ff257e7",
                "id": "8484b834-f29e-4af2-bf42-80644d154f76",
                "user_id": "8484b834-f29e-4af2-bf42-80644d154f76",
                "identity_data": {
                    "email": "valid.email@supabase.io",
                    "email_verified": False,
                    "phone_verified": False,
                    "sub": "8484b834-f29e-4af2-bf42-80644d154f76",
                },
                "provider": "email",
                "last_sign_in_at": "2024-05-14T12:56:33.824231484Z",
                "created_at": "2024-05-14T12:56:33.824261Z",
                "updated_at": "2024-05-14T12:56:33.824261Z",
                "email": "valid.email@supabase.io",
            }
        ],
        "created_at": "2024-05-14T12:56:33.821567Z",
        "updated_at": "2024-05-14T12:56:33.825595Z",
        "is_anonymous": False,
    },
    "email_data": {
        "token": "305805",
        "token_hash": "7d5b7b1964cf5d388340a7f04f1dbb5eeb6c7b52ef8270e1737a58d0",
        "redirect_to": "http://localhost:3000/",
        "email_action_type": "signup",
        "site_url": "http://localhost:9999",
        "token_new": "",
        "token_hash_new": "",
        "old_email": "",
        "old_phone": "",
        "provider": "",
        "factor_type": "",
    },
}

# https://zitadel.com/docs/guides/manage/customize/notification-providers
ZITADEL: dict[str, Any] = {
    "contextInfo": {
        "eventType": "user.human.initialization.code.added",
        "provider": {"id": "285181292935381355", "description": "test"},
        "recipientEmailAddress": "example@zitadel.com",
    },
    "templateData": {
        "title": "Zitadel - Initialize User",
        "preHeader": "Initialize User",
        "subject": "Initialize User",
        "greeting": "Hello GivenName FamilyName,",
        "text": "This user was created in Zitadel. (Code 0M53RF) If you didn't ask for this mail, please ignore it.",
        "url": "http://example.zitadel.com/ui/login/user/init?code=0M53RF&userID=285181014567813483",
        "buttonText": "Finish initialization",
        "primaryColor": "#5469d4",
        "backgroundColor": "#fafafa",
        "fontColor": "#000000",
        "fontFamily": "-apple-system, BlinkMacSystemFont, Segoe UI, Lato, Arial, Helvetica, sans-serif",
        "footerText": "InitCode.Footer",
    },
    "args": {
        "changeDate": "2024-09-16T10:58:50.73237+02:00",
        "code": "0M53RF",
        "creationDate": "2024-09-16T10:58:50.73237+02:00",
        "displayName": "GivenName FamilyName",
        "firstName": "GivenName",
        "lastEmail": "example@zitadel.com",
        "lastName": "FamilyName",
        "lastPhone": "+41791234567",
        "loginNames": ["Username"],
        "nickName": "",
        "preferredLoginName": "Username",
        "userName": "Username",
        "verifiedEmail": "example@zitadel.com",
        "verifiedPhone": "",
    },
}

# what the body of the courier in docs/http.md makes of the fields that Kratos documents
KRATOS: dict[str, Any] = {
    "recipient": "user@example.com",
    "template_type": "login_code_valid",
    "template_data": {
        "to": "user@example.com",
        "login_code": "523196",
        "identity": {"traits": {"email": "user@example.com", "name": {"first": "Ada", "last": "Lovelace"}}},
        "request_url": "https://www.example.com/self-service/login/browser",
        "transient_payload": {"locale": "de"},
        "expires_in_minutes": 5,
    },
}

# https://docs.logto.io/integrations/http-email
LOGTO: dict[str, Any] = {
    "to": "foo@logto.io",
    "type": "SignIn",
    "payload": {"code": "123456", "locale": "de"},
    "ip": "192.168.1.1",
}


def encoded(payload: object) -> bytes:
    return json.dumps(payload).encode()


def supabase_headers(body: bytes, at_s: int, *, webhook_id: str = "msg_1") -> dict[str, str]:
    """Return the headers of Standard Webhooks."""
    signed = f"{webhook_id}.{at_s}.".encode() + body
    signature = b64encode(hmac.digest(b64decode(SUPABASE_KEY), signed, sha256)).decode()
    return {"webhook-id": webhook_id, "webhook-timestamp": str(at_s), "webhook-signature": f"v1,{signature}"}


def zitadel_headers(body: bytes, at_s: int, *, key: str = ZITADEL_KEY) -> dict[str, str]:
    """Return the header that Zitadel adds."""
    signature = hmac.digest(key.encode(), f"{at_s}.".encode() + body, sha256).hex()
    return {"zitadel-signature": f"t={at_s},v1={signature}"}
