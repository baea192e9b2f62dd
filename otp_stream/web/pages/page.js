// Keeps the page fresh without a reload; without this script the page is whole, only still.
"use strict";
const PAUSE_MS = 2000;
async function refresh() {
  try {
    const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(5000) });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const main = fresh.getElementById("live");
    if (!answer.ok || !main) throw new Error("no page");
    document.getElementById("live").replaceWith(main);
    document.title = fresh.title;
    document.body.classList.remove("stale");
  } catch {
    document.body.classList.add("stale");
    document.title = "No answer · otp-stream";
  }
}
setInterval(() => { if (!document.hidden) refresh(); }, PAUSE_MS);
