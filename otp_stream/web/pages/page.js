// Keeps the page as the worker is, by server-sent events. Without this script the page reloads itself.
"use strict";
const SILENCE_MS = 8000;
const AGAIN_MS = 2000;
let source = null;
let heard = Date.now();
let shown = heard;
let announced = null;

// Changes only what differs, so that a selection, the focus and an opened table stay as they are.
function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
  } else if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
  } else {
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
    const before = [...old.childNodes], after = [...fresh.childNodes];
    after.forEach((node, place) => (before[place] ? morph(before[place], node) : old.append(node)));
    before.slice(after.length).forEach((node) => node.remove());
  }
}

function take(event) {
  const { title, parts } = JSON.parse(event.data);
  for (const [name, html] of Object.entries(parts)) {
    const place = document.getElementById(name);
    const fresh = place.cloneNode(false);
    fresh.innerHTML = html;
    morph(place, fresh);
  }
  hear(`${title} · otp-stream`);
}

function hear(title) {
  heard = Date.now();
  if (document.title !== title) document.title = title;
  const troubles = [...document.querySelectorAll("#status .checks :is(.degraded, .unhealthy)")];
  const news = [title, ...troubles.map((it) => it.dataset.check)].join();
  if (announced !== null && news !== announced) {
    document.getElementById("said").textContent = [title.split(" · ")[0], ...troubles.map((it) => it.innerText)].join(". ");
  }
  announced = news;
  listen(false);
  document.body.classList.remove("stale");
}

// Where there is no place among the viewers, or something in between lets no stream through, the page tells as much.
async function ask() {
  try {
    const answer = await fetch(".", { signal: AbortSignal.timeout(SILENCE_MS) });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of fresh.querySelectorAll("[data-live]")) morph(document.getElementById(part.id), part);
    hear(fresh.title);
  } catch {
    // nobody answers: the silence tells
  }
}

// A worker that is started anew is back within seconds: nobody needs to be startled by that.
function listen(silent) {
  const place = document.getElementById("silence");
  if (silent && place.hidden) {
    document.title = "No answer · otp-stream";
    place.textContent = `No answer from the worker since ${new Date(heard).toISOString().slice(11, 19)} UTC. What you see is how it was then.`;
  }
  place.hidden = !silent;
}

function open() {
  source?.close();
  source = new EventSource("live");
  source.onmessage = take;
}

function look() {
  if (document.hidden) return;
  const now = Date.now();
  listen(now - Math.max(heard, shown) > SILENCE_MS);
  document.body.classList.toggle("stale", now - heard > SILENCE_MS);
  if (source?.readyState === EventSource.CLOSED) {
    open(); // after an answer that was no stream it does not try again
    ask();
  }
}

document.addEventListener("visibilitychange", () => {
  // a browser has few connections to one host, and tabs that nobody looks at would hold them all
  if (document.hidden) {
    source?.close();
    document.title = "Paused · otp-stream";
  } else {
    shown = Date.now();
    open();
    look();
  }
});
if (!document.hidden) open();
setInterval(look, AGAIN_MS);
