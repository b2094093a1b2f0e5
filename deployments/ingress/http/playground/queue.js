/** What waits and what is being made. */

import { html, useEffect, useState } from "./vendor/preact.js";
import { left, spelled } from "./pace.js";
import { isVideo } from "./request.js";
import { useStore } from "./store.js";
import { cancel, cancelAll, dismiss, tasks } from "./tasks.js";

const TICK_MS = 500;

export function Queue() {
  const all = useStore(tasks);
  const [now, tick] = useState(Date.now());
  const open = all.filter(({ error }) => !error);
  useEffect(() => {
    if (!open.length) return undefined;
    const ticking = setInterval(() => tick(Date.now()), TICK_MS);
    return () => clearInterval(ticking);
  }, [open.length > 0]);
  if (!all.length) return null;
  return html`<section class="queue" aria-label="In the making">
    <header><h2>In the making</h2>
      ${open.length > 1 && html`<button type="button" onClick=${cancelAll}>Cancel all ${open.length}</button>`}</header>
    <ul>${all.map((task) => html`<${Task} key=${task.id} task=${task} now=${now} />`)}</ul>
  </section>`;
}

function standing(task, now) {
  if (task.error) return task.error;
  if (task.status === "cancelling") return "being cancelled …";
  if (task.status === "queued") {
    if (task.position) return `waits; ${task.position} before it`;
    return now - task.asked > 5000 ? "waits for a place, or for a part of the service that has to start" : "about to begin";
  }
  const seconds = left(task, now);
  if (task.progress >= 100) return "being fetched …";
  return seconds === undefined ? `${task.progress} %` : `${task.progress} %, about ${spelled(seconds)} left`;
}

function Task({ task, now }) {
  const { id, request, error, previews, progress, trouble } = task;
  const shown = Object.entries(previews);
  const alt = isVideo(request) ? "a first frame" : "a picture, not finished";
  return html`<li class=${error ? "task failed" : "task"}>
    <p class="what">${request.body.prompt || "(no prompt)"}</p>
    ${shown.length > 0 && html`<div class="previews">${shown.map(([index, url]) => html`<img key=${index} src=${url} alt=${alt} />`)}</div>`}
    ${!error && html`<progress max="100" value=${task.status === "queued" ? undefined : progress} aria-label="Progress"></progress>`}
    <p role=${error ? "alert" : "status"} class=${error ? "fault" : ""}>${standing(task, now)}${trouble ? ` (${trouble}; trying again)` : ""}</p>
    ${error ? html`<button type="button" onClick=${() => dismiss(id)}>Dismiss</button>` : html`<button type="button" disabled=${task.status === "cancelling"} onClick=${() => cancel(id)}>Cancel</button>`}
  </li>`;
}
