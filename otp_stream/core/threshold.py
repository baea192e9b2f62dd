"""Shares the slots of a lane between tenants."""


class DynamicThreshold:
    """Permits each tenant as many jobs as there are free slots, so that a slot is free for every other tenant.

    One busy tenant gets half of the slots, and each of k busy ones gets 1/(k+1) of them (Choudhury and Hahne, "Dynamic
    Queue Length Thresholds for Shared-Memory Packet Switches", 1998). Only jobs that are added use a slot: those on
    their way to another queue leave in a moment.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._free = slots
        self._kept: dict[str, int] = {}

    @property
    def kept(self) -> dict[str, int]:
        """The number of jobs of each tenant that has any."""
        return dict(self._kept)

    @property
    def is_crowded(self) -> bool:
        """Whether a tenant is not permitted to have another job."""
        # a tenant has at most the slots that are not free
        return 2 * self._free <= self._slots and max(self._kept.values(), default=0) >= max(self._free, 1)

    def permits(self, tenant: str) -> bool:
        """Return whether a tenant may have another job. Its first one is always permitted."""
        return self._kept.get(tenant, 0) < max(self._free, 1)

    def add(self, tenant: str) -> None:
        """Count a job."""
        self._kept[tenant] = self._kept.get(tenant, 0) + 1
        self._free -= 1

    def remove(self, tenant: str) -> None:
        """Count the end of a job that was added."""
        left = self._kept[tenant] - 1
        if left:
            self._kept[tenant] = left
        else:
            del self._kept[tenant]  # the names of tenants that no longer exist must not accumulate
        self._free += 1
