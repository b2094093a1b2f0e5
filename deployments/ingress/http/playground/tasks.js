/** What is being made: each request is a job of the service, which goes on when the page is closed
 *  and is followed again when it is opened. */

import { keep, recall, remember } from "./kept.js";
import { expected, learn } from "./pace.js";
import { isVideo, sent } from "./request.js";
import { Refused, ask, events } from "./service.js";
import { store } from "./store.js";

const AGAIN_MS = 2000; // until the service is asked again, after it did not answer
const OVER = ["completed", "failed", "cancelled"];

/** Tasks, the newest first: `{id, request, card, status, position, progress, previews, asked,
 *  begun, expected, error, trouble}`. */
export const tasks = store([]);

const stopping = new Map(); // AbortControllers by task

function update(id, fields) {
  tasks.set((all) => all.map((task) => (task.id === id ? { ...task, ...fields } : task)));
}

function saved() {
  const open = tasks.get().filter(({ error }) => !error);
  return remember("tasks", open.map(({ id, request, card, asked }) => ({ id, request, card, asked })));
}

export function dismiss(id) {
  tasks.set((all) => all.filter((task) => task.id !== id));
  return saved();
}

/** Hands a request in. Raises `Refused`. */
export async function submit(request, card) {
  const answer = await ask(request.route, await sent(request));
  const job = await answer.json();
  begin({ id: job.id, request, card, asked: Date.now() });
  await saved();
}

/** Goes on with what was not over when the page was left. */
export async function resume() {
  for (const task of (await recall("tasks")) ?? []) begin(task);
}

function begin(task) {
  const fresh = { status: "queued", progress: 0, previews: {}, expected: expected(task.request, task.card) };
  tasks.set((all) => [{ ...fresh, ...task }, ...all]);
  follow(task.id);
}

export async function cancel(id) {
  update(id, { status: "cancelling" });
  try {
    await ask(`v1/jobs/${id}/cancel`, { method: "POST" });
  } catch (error) {
    if (error.status !== 404) update(id, { trouble: error.message });
    else await dismiss(id);
  }
}

export const cancelAll = () => Promise.all(tasks.get().filter(({ error }) => !error).map(({ id }) => cancel(id)));

async function follow(id) {
  const stop = new AbortController();
  stopping.set(id, stop);
  for (;;) {
    try {
      if (await told(id, stop.signal)) return;
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status === 404) {
        update(id, { status: "failed", error: "the service no longer knows this task" });
        return;
      }
      update(id, { trouble: error.message });
    }
    await new Promise((wait) => setTimeout(wait, AGAIN_MS));
  }
}

/** Follows a job's events; whether it is over. */
async function told(id, signal) {
  for await (const event of events(`v1/jobs/${id}/events`, signal)) {
    if (event.error) throw new Refused(event.error.code === "not_found" ? 404 : 500, event.error);
    if (event.type === "job.partial_image") {
      const { image_index, media_type, b64_json } = event;
      const { previews } = tasks.get().find((task) => task.id === id);
      update(id, { previews: { ...previews, [image_index]: `data:${media_type};base64,${b64_json}` } });
      continue;
    }
    await see(id, event.job);
    if (OVER.includes(event.job.status)) return true;
  }
  return false;
}

async function see(id, job) {
  const task = tasks.get().find((one) => one.id === id);
  if (!task) return;
  if (job.status === "completed") return finish(task, job);
  if (job.status === "cancelled") return dismiss(id);
  if (job.status === "failed") {
    update(id, { status: "failed", error: job.error.message, param: job.error.param });
    return saved();
  }
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
      made: job.completed_at * 1000 - index,
      blob,
      request: { route: task.request.route, body },
      seed,
      size,
      took_s,
    });
  }
  if (failed.length) {
    update(task.id, { status: "failed", error: failed.join("; ") });
    return saved();
  }
  return dismiss(task.id);
}
