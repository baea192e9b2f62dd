// Updates the page by server-sent events. Without this script the page reloads itself.
"use strict";
const TIMEOUT_MS = 8000;
const CHECK_INTERVAL_MS = 2000;
let source = null;
let updatedAt = Date.now();
let visibleSince = updatedAt;
let announced = null;

// Changes only what differs, so that the selection, the focus and open tables are kept.
function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
  } else if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
  } else {
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
    const before = [...old.childNodes], after = [...fresh.childNodes];
    after.forEach((node, index) => (before[index] ? morph(before[index], node) : old.append(node)));
    before.slice(after.length).forEach((node) => node.remove());
  }
}

function handleEvent(event) {
  const { title, parts } = JSON.parse(event.data);
  for (const [name, html] of Object.entries(parts)) {
    const element = document.getElementById(name);
    const fresh = element.cloneNode(false);
    fresh.innerHTML = html;
    morph(element, fresh);
  }
  updated(`${title} · otp-stream`);
}

// Records an update, and announces a changed status to screen readers.
function updated(title) {
  updatedAt = Date.now();
  if (document.title !== title) document.title = title;
  const problems = [...document.querySelectorAll("#status .checks :is(.degraded, .unhealthy)")];
  const status = [title, ...problems.map((it) => it.dataset.check)].join();
  if (announced !== null && status !== announced) {
    document.getElementById("announcement").textContent = [title.split(" · ")[0], ...problems.map((it) => it.innerText)].join(". ");
  }
  announced = status;
  showNoAnswer(false);
  document.body.classList.remove("stale");
}

// Fetches the whole page if there are too many viewers, or if a proxy blocks the stream.
async function fetchPage() {
  try {
    const response = await fetch(".", { signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!response.ok) return;
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const part of fresh.querySelectorAll("[data-live]")) morph(document.getElementById(part.id), part);
    updated(fresh.title);
  } catch {
    // no answer: check() reports it after TIMEOUT_MS
  }
}

// Shown only after TIMEOUT_MS, because a worker that restarts is back within seconds.
function showNoAnswer(show) {
  const notice = document.getElementById("no-answer");
  if (show && notice.hidden) {
    document.title = "No answer · otp-stream";
    notice.textContent = `No answer from the worker since ${new Date(updatedAt).toISOString().slice(11, 19)} UTC. The page shows the state of that time.`;
  }
  notice.hidden = !show;
}

function connect() {
  source?.close();
  source = new EventSource("live");
  source.onmessage = handleEvent;
}

function check() {
  if (document.hidden) return;
  const now = Date.now();
  showNoAnswer(now - Math.max(updatedAt, visibleSince) > TIMEOUT_MS);
  document.body.classList.toggle("stale", now - updatedAt > TIMEOUT_MS);
  if (source?.readyState === EventSource.CLOSED) {
    connect(); // EventSource does not reconnect after a response that is no event stream
    fetchPage();
  }
}

document.addEventListener("visibilitychange", () => {
  // a browser allows few connections to one host, and hidden tabs would use them up
  if (document.hidden) {
    source?.close();
    document.title = "Paused · otp-stream";
  } else {
    visibleSince = Date.now();
    connect();
    check();
  }
});
if (!document.hidden) connect();
setInterval(check, CHECK_INTERVAL_MS);
