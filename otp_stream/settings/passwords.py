"""Which passwords, tokens and keys are easy to guess."""

import re
from itertools import pairwise

_FEW = 8
"""A random token of 16 characters has at least as many different ones."""
_WORDS = ("admin", "change", "example", "letmein", "otp-stream", "otpstream", "passw", "qwert", "secret", "token")
_PLACEHOLDERS = {
    "admin", "changeit", "changeme", "default", "example", "guest", "letmein", "pass", "passwd", "password",
    "placeholder", "rabbitmq", "redis", "replaceme", "root", "secret", "yourpassword",
}  # fmt: skip
_KEYBOARD = (
    "1234567890 qwertyuiop asdfghjkl zxcvbnm qwertzuiop yxcvbnm azertyuiop qsdfghjklm wxcvbn "
    "abcdefghijklmnopqrstuvwxyz "
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p qazwsxedcrfvtgbyhnujm 1q2w3e4r5t6y7u8i9o0p q1w2e3r4t5y6u7i8o9p0"
)
_NEIGHBOURS = f"{_KEYBOARD} {_KEYBOARD[::-1]}"
_SHORTEST_PATTERN = 6
"""Shorter passwords are not checked for patterns."""


def is_guessable(token: str) -> bool:
    """Return whether a token is a word, a sequence or a repetition instead of random characters."""
    text = token.lower()
    if _is_pattern(text):
        return True
    steps = {ord(after) - ord(before) for before, after in pairwise(text)}
    return len(set(text)) < _FEW or len(steps) < _FEW // 2 or any(word in text for word in _WORDS)


def is_placeholder(password: str, user: str) -> bool:
    """Return whether a password is a documented default, its user's name, or a pattern. A short one may be random."""
    text = password.lower()
    word = re.sub(r"[\W_]", "", text)
    return bool(
        word.rstrip("0123456789") in _PLACEHOLDERS
        or (text and text == user.lower())
        or (len(text) >= _SHORTEST_PATTERN and _is_pattern(text))
    )


def _is_pattern(text: str) -> bool:
    """Return whether the whole text is a repetition, or more than half of it are neighbouring keys of a keyboard."""
    if any(text[size:] == text[:-size] for size in range(1, len(text) // 2 + 1)):
        return True
    neighbours = {at + more for at in range(len(text) - 3) if text[at : at + 4] in _NEIGHBOURS for more in range(4)}
    return 2 * len(neighbours) >= len(text)
