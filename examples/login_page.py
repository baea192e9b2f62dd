"""What a login page can show while a person waits for a code: follows one job by its events.

    RABBITMQ_URL=amqp://… python examples/login_page.py JOB_ID

It needs aio-pika alone. Subscribe before you publish the job, or you may miss its end.
"""

import asyncio
import json
import os
import sys

import aio_pika

ENDS = {
    "sent": "The code is on its way: look into your inbox, and into the spam folder.",
    "duplicate": "The code was sent before: look into your inbox.",
    "superseded": "A newer code is on its way: use that one.",
    "throttled": "That was one code too many. Please wait a while.",
    "expired": "The code could not be sent in time. Ask for another.",
}
ANOTHER_ADDRESS = "Mail to this address is refused. Is it right? Try another one."
OUR_FAULT = "The code could not be sent. It is not your fault: please try again later."


def words(event: dict) -> str | None:
    """Return what to show to the person."""
    outcome = event["outcome"]
    if outcome == "retrying":
        return "It takes a little longer than usual …"
    if outcome == "rejected" and event.get("replyClass") in ("address", "mailbox", None):
        return ANOTHER_ADDRESS
    return ENDS.get(outcome, OUR_FAULT)


async def main(job_id: str) -> None:
    """Print the events of this job, until its final outcome."""
    connection = await aio_pika.connect(os.environ.get("RABBITMQ_URL", "amqp://guest:guest@127.0.0.1/"))
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(os.environ.get("EVENTS_EXCHANGE", "otp.events"), "otp.*")
        print("listening", flush=True)
        async with queue.iterator(no_ack=True) as events:
            async for message in events:
                event = json.loads(message.body)
                if event["jobId"] == job_id:
                    print(words(event), flush=True)
                    if event["outcome"] != "retrying":
                        return


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
