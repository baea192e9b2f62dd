"""A deployment with dead letters."""

import asyncio
from dataclasses import dataclass

from cli import Ran, names, otp_stream
from conftest import Stage
from ledger import Ledger
from rabbitmq import until
from visitor import TOKEN, Visitor
from worker import CODE, Worker

from otp_stream.broker.topology import Topology
from otp_stream.core.backoff import Backoff
from otp_stream.dead_letters import DeadLetterQueue

REFUSED = "550 5.1.1 mailbox unknown"


@dataclass
class Deployment:
    """A worker, its relay and its dead-letter queue."""

    stage: Stage
    worker: Worker
    ledger: Ledger

    async def dead(self, *words: str) -> Ran:
        """Run `otp-stream dead`."""
        ran = await otp_stream(self.stage.folder, "dead", *words, **names(self.stage))
        assert CODE not in ran.out
        return ran

    async def depth(self) -> int:
        return await self.stage.rabbit.depth(f"{self.stage.rabbit.prefix}.dead")

    async def wait_depth(self, count: int) -> None:
        await self.stage.rabbit.wait_depth(count, f"{self.stage.rabbit.prefix}.dead")

    async def die(self, count: int, domain: str = "corp.example", reply: str = REFUSED, **fields: object) -> None:
        """Publish jobs to one domain, which the relay refuses."""
        before = await self.depth()
        known = len(self.ledger.published)
        people = [f"job{known + number}@{domain}" for number in range(count)]
        for person in people:
            self.stage.relay.always("rcpt", reply, to=person)
        for person in people:
            await self.ledger.publish(1, email=person, **fields)
        await until(lambda: self.holds(before + count), f"{count} more dead letters", 60)

    async def holds(self, *counts: int) -> bool:
        return await self.depth() in counts

    async def page(self) -> str:
        """Return the page `/dead` for a user who is logged in."""
        visitor = Visitor(self.worker)
        return (await asyncio.to_thread(visitor.ask, "/dead", {"Authorization": f"Bearer {TOKEN}"}))[1]

    def accept_all(self) -> None:
        """Have the relay accept every mail."""
        self.stage.relay._always.clear()

    def queue(self) -> DeadLetterQueue:
        rabbit = self.stage.rabbit
        topology = Topology(rabbit.queue, rabbit.prefix, Backoff(1000, 30_000, 3))
        return DeadLetterQueue(lambda: self.stage.url, topology, 15, b"key")
