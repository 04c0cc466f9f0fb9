// Two things: light or dark, and pages that refresh themselves. Everything else works without it.
"use strict";

// -- light or dark: what the system says, unless somebody chose here. Set before the first paint.
const THEME = "hotrefresh-theme";
function kept() {
  try { return localStorage.getItem(THEME); } catch { return null; }
}
function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
if (["light", "dark"].includes(kept())) document.documentElement.dataset.theme = kept();

function offerTheme() {
  const button = document.getElementById("theme");
  const name = () => { button.textContent = isDark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`); };
  button.hidden = false;
  name();
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem(THEME, theme); } catch { /* it holds until the page is left */ }
    name();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
}

// -- a page that refreshes itself: it is read again, and what differs in the sections marked `data-live` is put in place.
// Only what differs: focus, a selection, opened details and scrolled tables stay as they are.
function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || old.id !== fresh.id) return old.replaceWith(fresh);
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  const before = [...old.childNodes], after = [...fresh.childNodes];
  after.forEach((child, place) => { if (place < before.length) morph(before[place], child); else old.append(child); });
  before.slice(after.length).forEach((child) => child.remove());
}

function swap(fresh) {
  const focused = document.activeElement;
  for (const section of document.querySelectorAll("[data-live]")) {
    const newer = fresh.getElementById(section.id);
    if (newer) morph(section, newer);
  }
  if (!focused.isConnected) document.getElementById("content").focus({ preventScroll: true });
  if (document.title !== fresh.title) document.title = fresh.title;
}

function refreshEvery(seconds) {
  const said = document.getElementById("refreshing");
  const text = document.createElement("span");
  text.setAttribute("role", "status");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  said.append(text, button);
  let isStopped = false, timer = null, isOver = false;

  function show(words, isLost = false) {
    if (text.textContent !== words) text.textContent = words;
    said.classList.toggle("lost", isLost);
    button.textContent = isStopped ? "Go on updating" : "Stop updating";
    button.hidden = isOver;
  }
  function plan() {
    clearTimeout(timer);
    if (!isStopped && !isOver && !document.hidden) timer = setTimeout(look, seconds * 1000);
  }
  async function look() {
    try {
      const answer = await fetch(location.href, { headers: { "x-hotrefresh-refresh": "1" }, signal: AbortSignal.timeout(15000) });
      if (answer.status === 401) return location.reload();
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      swap(fresh);
      isOver = !fresh.body.dataset.refresh;
      show(isOver ? "" : `Updates every ${seconds} s`);
    } catch {
      show("No answer; what is shown is old. Trying again.", true);
    }
    plan();
  }
  button.addEventListener("click", () => {
    isStopped = !isStopped;
    show(isStopped ? "Not updating" : `Updates every ${seconds} s`);
    if (isStopped) clearTimeout(timer); else look();
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden) clearTimeout(timer); else if (!isStopped && !isOver) look(); });
  show(`Updates every ${seconds} s`);
  plan();
}

document.addEventListener("DOMContentLoaded", () => {
  offerTheme();
  // What a form has done is said once, not again by a reload or a bookmark.
  if (new URLSearchParams(location.search).has("done")) history.replaceState(null, "", location.pathname);
  if (document.body.dataset.refresh) refreshEvery(Number(document.body.dataset.refresh));
});
