/** What is being made: each request is a job of the service, which goes on when the page is closed
 *  and is followed again when it is opened. */

import { forgetTask, keep, keepTask, openTasks } from "./kept.js";
import { expected, learn } from "./pace.js";
import { isVideo, sent } from "./request.js";
import { Refused, ask, events } from "./service.js";
import { store } from "./store.js";

const AGAIN_MS = 1000; // until the service is asked again how a task stands
const OVER = ["completed", "failed", "cancelled"];

/** Tasks, the newest first: `{id, request, card, status, position, progress, previews, asked,
 *  begun, expected, error, trouble}`. */
export const tasks = store([]);

function update(id, fields) {
  tasks.set((all) => all.map((task) => (task.id === id ? { ...task, ...fields } : task)));
}

export function dismiss(id) {
  tasks.set((all) => all.filter((task) => task.id !== id));
  return forgetTask(id);
}

/** It is over, and stays to be read; not beyond this visit. */
function fail(id, error) {
  update(id, { status: "failed", error });
  return forgetTask(id);
}

/** Hands a request in. Raises `Refused`. */
export async function submit(request, card) {
  const answer = await ask(request.route, await sent(request));
  const job = await answer.json();
  const task = { id: job.id, request, card, asked: Date.now() };
  await keepTask(task); // before it is seen: whoever sees it may leave
  begin(task);
}

/** Goes on with what was not over when the page was left. */
export async function resume() {
  const open = await openTasks();
  for (const task of open.sort((one, other) => one.asked - other.asked)) begin(task);
}

function begin(task) {
  const fresh = { status: "queued", progress: 0, previews: {}, expected: expected(task.request, task.card) };
  tasks.set((all) => [{ ...fresh, ...task }, ...all]);
  follow(task.id);
}

export async function cancel(id) {
  const { status } = known(id);
  update(id, { status: "cancelling" });
  try {
    await ask(`v1/jobs/${id}/cancel`, { method: "POST" });
  } catch (error) {
    if (error.gone) await dismiss(id);
    else update(id, { status, trouble: error.message });
  }
}

export const cancelAll = () => Promise.all(tasks.get().filter(({ error }) => !error).map(({ id }) => cancel(id)));

const known = (id) => tasks.get().find((task) => task.id === id);

let listening = false; // to one task's events

/** Until a task is over, or dismissed. A browser opens six connections to a host, for all its tabs together: of each tab
 *  one task is listened to, and the others are asked for. */
async function follow(id) {
  while (known(id)) {
    try {
      if (await (listening ? looked(id) : listened(id))) return;
    } catch (error) {
      // It stays kept: another key, say, may know it.
      if (error.gone) return update(id, { status: "failed", error: "the service does not know this task" });
      update(id, { trouble: error.message });
    }
    await new Promise((wait) => setTimeout(wait, AGAIN_MS));
  }
}

async function listened(id) {
  listening = true;
  try {
    return await told(id);
  } finally {
    listening = false;
  }
}

/** Sees how a job stands; whether it is over. */
async function looked(id) {
  const job = await (await ask(`v1/jobs/${id}`)).json();
  if (known(id)) await see(id, job);
  return OVER.includes(job.status);
}

/** Follows a job's events; whether it is over. */
async function told(id) {
  for await (const event of events(`v1/jobs/${id}/events`)) {
    if (!known(id)) return true;
    if (event.error) throw new Refused(500, event.error);
    if (event.type === "job.partial_image") {
      const { image_index, media_type, b64_json } = event;
      const { previews } = known(id);
      update(id, { previews: { ...previews, [image_index]: `data:${media_type};base64,${b64_json}` } });
      continue;
    }
    await see(id, event.job);
    if (OVER.includes(event.job.status)) return true;
  }
  return false;
}

async function see(id, job) {
  const task = known(id);
  if (job.status === "completed") return finish(task, job);
  if (job.status === "cancelled") return dismiss(id);
  if (job.status === "failed") return fail(id, job.error.message);
  const begun = task.begun ?? (job.status === "in_progress" ? Date.now() : undefined);
  const status = task.status === "cancelling" ? task.status : job.status;
  update(id, { status, position: job.queue_position, progress: job.progress, begun, trouble: undefined });
}

/** Takes what was made into the gallery. */
async function finish(task, job) {
  update(task.id, { status: "in_progress", progress: 100 });
  const took_s = job.started_at ? (Date.now() - (task.begun ?? Date.now())) / 1000 : undefined;
  if (task.begun && took_s) learn(task.request, task.card, took_s);
  const made = isVideo(task.request) ? [job.video] : job.result.data;
  const failed = [];
  for (const [index, one] of made.entries()) {
    if (one.error) {
      failed.push(one.error.message);
      continue;
    }
    const blob = await (await ask(`v1/jobs/${task.id}/content?index=${index}`)).blob();
    const seed = one.seed ?? undefined;
    const body = { ...task.request.body, ...(seed === undefined ? {} : { seed }) };
    if ("n" in body) body.n = 1;
    const size = isVideo(task.request) ? job.video.size : job.result.size;
    await keep({
      id: `${task.id}/${index}`,
      made: Date.now(), // what `completed_at` says are whole seconds, too coarse to sort by
      blob,
      request: { route: task.request.route, body },
      seed,
      size,
      took_s,
    });
  }
  return failed.length ? fail(task.id, failed.join("; ")) : dismiss(task.id);
}
