"""Statistics by tenant since the start of this process."""

from collections import Counter, deque
from dataclasses import dataclass, field

from otp_stream.core.stats import TenantStats

NAMED = 200
"""Tenants with separate statistics. Later ones are counted together, so that metrics stay bounded."""
OTHERS = "(others)"
_LATEST = 100


@dataclass(slots=True)
class _Recorder:
    endings: Counter[str] = field(default_factory=Counter[str])
    accepted: int = 0
    took_ms: int = 0
    latest_ms: deque[int] = field(default_factory=lambda: deque[int](maxlen=_LATEST))

    def snapshot(self) -> TenantStats:
        latest = sorted(self.latest_ms)
        return TenantStats(
            endings=dict(self.endings),
            accepted=self.accepted,
            took_ms=self.took_ms,
            p50_ms=latest[len(latest) // 2] if latest else None,
            p95_ms=latest[len(latest) * 95 // 100] if latest else None,
        )


class TenantRecorder:
    """Counts jobs by tenant. The default tenant is called `default`."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Recorder] = {}

    def job_ended(self, tenant: str, how: str) -> None:
        """Count a job by how it ended."""
        self._of(tenant).endings[how] += 1

    def mail_accepted(self, tenant: str, took_ms: int) -> None:
        """Count a mail that a relay accepted."""
        recorder = self._of(tenant)
        recorder.accepted += 1
        recorder.took_ms += took_ms
        recorder.latest_ms.append(took_ms)

    def snapshot(self) -> dict[str, TenantStats]:
        """Return the statistics of each tenant that has had a job."""
        return {name: recorder.snapshot() for name, recorder in self._tenants.items()}

    def _of(self, tenant: str) -> _Recorder:
        name = tenant or "default"
        if name not in self._tenants and len(self._tenants) >= NAMED:
            name = OTHERS
        if name not in self._tenants:
            self._tenants[name] = _Recorder()
        return self._tenants[name]
