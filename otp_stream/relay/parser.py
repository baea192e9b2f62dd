"""Parses SMTP replies (RFC 5321 §4.2) from bytes that arrive in pieces of any size."""

Answer = tuple[int, str]
"""A reply: its code, and its lines without the code, separated by newlines."""

# RFC 5321 §4.5.3.1.5 allows 512 octets a line. Some relays exceed it.
MAX_LINE = 4096
MAX_REPLY = 65_536
_MAX_LINES = 1_000
"""Lines of a reply. Replies to EHLO have about 20, and each line takes time, also an empty one."""


class GarbageError(Exception):
    """The bytes are no SMTP reply; the text contains the reason and quotes nothing."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.before: list[Answer] = []
        """The complete replies before it, in the same bytes."""


class ReplyParser:
    """Assembles replies from the bytes that are fed to it."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[str] = []
        self._code = b""
        self._size = 0

    @property
    def pending(self) -> bool:
        """Whether an incomplete reply is buffered."""
        return bool(self._rest or self._lines)

    def feed(self, data: bytes) -> list[Answer]:
        """Return the replies that `data` completes. Raises `GarbageError`, after which nothing more can be parsed."""
        answers: list[Answer] = []
        try:
            self._read(data, answers)
        except GarbageError as error:
            error.before = answers
            raise
        return answers

    def _read(self, data: bytes, answers: list[Answer]) -> None:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            code = line[:3]
            if not 3 <= len(line) <= MAX_LINE or not code.isdigit() or not b"200" <= code < b"600":
                raise GarbageError("the answer is no SMTP reply")
            text = line[4:].rstrip(b"\r").decode("utf-8", "replace")
            mark = line[3:4]
            if mark in b" \r" and not self._lines:
                answers.append((int(code), text))
            elif mark in b"- \r":
                self._add_line(code, text, len(line))
                if mark != b"-":
                    answers.append((int(code), "\n".join(self._lines)))
                    self._lines.clear()
                    self._size = 0
            else:
                raise GarbageError("the answer is no SMTP reply")
        if len(self._rest) > MAX_LINE:
            raise GarbageError(f"a reply line is longer than {MAX_LINE} bytes")

    def _add_line(self, code: bytes, text: str, size: int) -> None:
        if self._lines and code != self._code:
            raise GarbageError("the lines of one reply have different codes")
        self._code = code
        self._size += size
        if self._size > MAX_REPLY:
            raise GarbageError(f"a reply is longer than {MAX_REPLY} bytes")
        if len(self._lines) >= _MAX_LINES:
            raise GarbageError(f"a reply has more than {_MAX_LINES} lines")
        self._lines.append(text)
