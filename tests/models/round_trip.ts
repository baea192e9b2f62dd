import { ErasedBody } from "./models/ErasedBody";
import { JobEvent } from "./models/JobEvent";
import { OtpJob } from "./models/OtpJob";
import { Outcome } from "./models/Outcome";
import { Priority } from "./models/Priority";

declare function require(name: "node:fs"): { readFileSync(file: number, encoding: "utf8"): string };

const models = { ErasedBody, JobEvent, OtpJob };

/** Reads [{"schema", "payload"}, …] and writes the payloads, each through its model. */
function main(): void {
  const examples: { schema: keyof typeof models; payload: object }[] =
    JSON.parse(require("node:fs").readFileSync(0, "utf8"));
  const payloads = examples.map((it) => models[it.schema].unmarshal(it.payload).marshal());
  console.log(`[${payloads.join()}]`);
}

export function types(job: OtpJob, event: JobEvent): number {
  const tenant: string | undefined = job.metadata?.tenant;
  const place: string | undefined = job.metadata?.request?.place;
  const minutes: number | undefined = job.metadata?.expiryMinutes;
  const priority: Priority | undefined = job.priority;
  const outcome: Outcome = event.outcome;
  const made: number | undefined = job.timestamp;
  return event.at;
}

main();
