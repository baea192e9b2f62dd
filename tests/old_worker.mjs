// A worker like the previous one, lmw-worker (commit 6de9610): the same calls to amqplib and nodemailer, in the same order,
// and the same texts in its log. It shares the jobs queue with a worker in the tests of the migration.
//
// A failed job is acknowledged, and published again by a timer of this process. SIGTERM closes the connection at once.

import amqp from "amqplib";
import nodemailer from "nodemailer";

const queue = process.env.RABBITMQ_QUEUE_NAME;
const maxRetries = Number(process.env.MAX_RETRIES ?? 3);
const baseDelayMs = Number(process.env.BASE_DELAY_MS ?? 1000);

const transport = nodemailer.createTransport({
  host: process.env.SMTP_HOST,
  port: Number(process.env.SMTP_PORT),
  secure: false,
  name: "previous-worker", // the name in EHLO, by which the tests distinguish its mails
});

function read(message) {
  const job = JSON.parse(message.content.toString());
  if (!/^[^\s@]+@[^\s@]+\.[^\s@]+$/.test(job.email)) throw new Error("Invalid email format");
  if (typeof job.otp !== "string" || job.otp.length < 4 || job.otp.length > 10) throw new Error("Invalid OTP");
  return {
    email: job.email.trim().toLowerCase(),
    otp: job.otp.trim(),
    retryCount: Number(job.retryCount || 0),
    jobId: job.jobId || `job_${Date.now()}_${Math.random().toString(36).slice(2)}`,
    timestamp: job.timestamp || Date.now(),
  };
}

function retry(channel, job) {
  const retryCount = job.retryCount + 1;
  if (retryCount > maxRetries) {
    console.error(`[FAILED] Job ${job.jobId} exceeded max retries (${maxRetries})`);
    return;
  }
  const exponential = baseDelayMs * 2 ** retryCount;
  const delay = Math.floor(exponential * (1 + 0.3 * Math.random()));
  console.log(`[RETRY] Scheduling retry ${retryCount}/${maxRetries} for job ${job.jobId} in ${delay}ms`);
  setTimeout(() => {
    const body = JSON.stringify({ ...job, retryCount, timestamp: Date.now() });
    channel.sendToQueue(queue, Buffer.from(body), { persistent: true });
    console.log(`[RETRY] Job ${job.jobId} requeued successfully`);
  }, delay);
}

async function send(message) {
  try {
    const { email, otp } = read(message);
    await transport.sendMail({
      from: `"OTP Service" <${process.env.SENDER_EMAIL}>`,
      to: email,
      subject: "Your code",
      html: `<p>${otp}</p>`,
    });
    return true;
  } catch (error) {
    console.error("[ERROR] Job failed:", error.message);
    return false;
  }
}

const connection = await amqp.connect(process.env.RABBITMQ_URL, { heartbeat: 60 });
connection.on("error", (error) => console.error("RabbitMQ connection error:", error));
const channel = await connection.createChannel();
await channel.assertQueue(queue, { durable: true });
await channel.prefetch(Number(process.env.PREFETCH_COUNT ?? 1));
let stopping = false;
await channel.consume(queue, async (message) => {
  if (!message || stopping) return;
  try {
    if (!(await send(message))) retry(channel, read(message));
    channel.ack(message);
  } catch (error) {
    console.error("[CONSUMER ERROR] Unexpected error processing message:", error.message);
    channel.nack(message, false, false);
  }
});
console.log(`[READY] OTP worker listening on queue: ${queue}`);

process.once("SIGTERM", async () => {
  stopping = true;
  await channel.close();
  await connection.close();
  console.log("[SHUTDOWN] OTP worker stopped successfully");
  process.exit(0);
});
