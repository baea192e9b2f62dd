// Keeps the page as the worker is, by server-sent events. Without this script the page reloads itself.
"use strict";
const SILENCE_MS = 8000;
const AGAIN_MS = 2000;
let source = null;
let heard = Date.now();

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
  heard = Date.now();
  for (const [name, html] of Object.entries(parts)) {
    const place = document.getElementById(name);
    const fresh = place.cloneNode(false);
    fresh.innerHTML = html;
    morph(place, fresh);
  }
  const whole = `${title} · otp-stream`;
  if (document.title !== whole) {
    document.title = whole;
    document.getElementById("said").textContent = title;
  }
  listen(false);
}

// A worker that is started anew is back within seconds: nobody needs to be startled by that.
function listen(silent) {
  const told = document.getElementById("silence");
  if (silent && told.hidden) {
    document.title = "No answer · otp-stream";
    told.textContent = `No answer from the worker since ${new Date(heard).toLocaleTimeString()}. What you see is how it was then.`;
  }
  told.hidden = !silent;
  document.body.classList.toggle("stale", silent);
}

function open() {
  source = new EventSource("live");
  source.onmessage = take;
}

function look() {
  if (document.hidden) return;
  listen(Date.now() - heard > SILENCE_MS);
  if (source.readyState === EventSource.CLOSED) open(); // after an answer that was no stream it does not try again
}

document.addEventListener("visibilitychange", () => {
  // a browser has few connections to one host, and tabs that nobody looks at would hold them all
  if (document.hidden) {
    source.close();
  } else {
    heard = Date.now();
    open();
  }
});
open();
setInterval(look, AGAIN_MS);
