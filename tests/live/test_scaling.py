"""`otp_jobs_sendable`: above 0 while more workers would help, 0 while they would have to wait as well."""

from conftest import Stage
from rabbitmq import until
from smtp_relay import Act
from worker import Worker, job

_JOBS = 200
_METRIC = "otp_jobs_sendable"


async def wait_metric(worker: Worker, *, above: float | None = None, exactly: float | None = None) -> None:
    async def is_so() -> bool:
        _, body = await worker.get("/metrics")
        found = [float(line.split()[1]) for line in body.splitlines() if line.startswith(f"{_METRIC} ")]
        return bool(found) and (found[0] > above if above is not None else found[0] == exactly)

    await until(is_so, f"{_METRIC} {'above' if above is not None else 'of'} {above or exactly}", 30)


async def publish_backlog(stage: Stage, worker: Worker) -> None:
    """Publish more jobs than the worker may hold, and wait until it knows how many are still in the queue."""
    await stage.rabbit.publish(*(job(f"u{at}@example.com", jobId=f"j{at}") for at in range(_JOBS)))

    async def is_known() -> bool:
        return await worker.metric(f'otp_queue_ready{{queue="{stage.rabbit.queue}"}}') >= _JOBS / 2

    await until(is_known, "backlog in the metrics", 30)


async def test_a_backlog_that_more_workers_could_send_counts_until_the_relay_is_down(stage: Stage) -> None:
    stage.relay.always("body", Act(delay_s=1))
    worker = await stage.run(PREFETCH_COUNT="10", SMTP_POOL_SIZE="3", HEARTBEAT_INTERVAL_MS="500")
    await wait_metric(worker, exactly=0)
    await publish_backlog(stage, worker)
    await wait_metric(worker, above=_JOBS / 2 - 1)
    await stage.relay.stop()
    await worker.wait_log("circuit breaker open")
    await wait_metric(worker, exactly=0)
    assert await worker.metric(f'otp_queue_ready{{queue="{stage.rabbit.queue}"}}') >= _JOBS / 2
    stage.relay.always("body", None)
    await stage.relay.start()
    await stage.relay.wait_accepted(_JOBS, 60)


async def test_a_backlog_does_not_count_while_the_rate_is_the_limit(stage: Stage) -> None:
    worker = await stage.run(PREFETCH_COUNT="10", SMTP_RATE_PER_SECOND="0.5", HEARTBEAT_INTERVAL_MS="500")
    await publish_backlog(stage, worker)
    await wait_metric(worker, exactly=0)
    for count in (2, 3, 4):
        await stage.relay.wait_accepted(count)
        await wait_metric(worker, exactly=0)
    assert await worker.metric(f'otp_queue_ready{{queue="{stage.rabbit.queue}"}}') >= _JOBS / 2
