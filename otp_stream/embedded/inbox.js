// Shows new e-mails as they arrive. Without this script, the page reloads itself.
"use strict";
const EVERY_MS = 1000;
const main = document.querySelector("main");

// An e-mail that was selected, or whose details are open, is not replaced.
function isRead() {
  return "chosen" in main.dataset || main.querySelector(".mail details[open]") !== null;
}

function linkTo(list, href) {
  return [...list.querySelectorAll("a")].find((it) => it.getAttribute("href") === href);
}

function show(fresh) {
  const list = main.querySelector(".list");
  const links = fresh.querySelector(".list");
  if (isRead()) {
    const href = list.querySelector("[aria-current]")?.getAttribute("href");
    links.querySelector("[aria-current]")?.removeAttribute("aria-current");
    linkTo(links, href)?.setAttribute("aria-current", "true");
  } else {
    main.querySelector(".mail")?.remove();
    const mail = fresh.querySelector(".mail");
    if (mail) main.append(mail);
  }
  const focused = list.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  const fromEnd = list.scrollHeight - list.scrollTop;
  const scrolled = list.scrollTop > 0;
  list.replaceChildren(...links.childNodes);
  if (scrolled) list.scrollTop = list.scrollHeight - fromEnd; // keep the view: new e-mails are added above it
  if (focused !== null) linkTo(list, focused)?.focus({ preventScroll: true });
  document.getElementById("kept").textContent = fresh.getElementById("kept").textContent;
  document.title = fresh.title;
  main.dataset.newest = fresh.querySelector("main").dataset.newest;
}

async function poll() {
  try {
    const newest = await (await fetch("inbox/newest")).text();
    if (newest !== main.dataset.newest) {
      const page = await (await fetch(location.href)).text();
      show(new DOMParser().parseFromString(page, "text/html"));
    }
  } catch {
    // the demo has stopped, or is restarting
  }
  setTimeout(poll, EVERY_MS);
}

setTimeout(poll, EVERY_MS);
