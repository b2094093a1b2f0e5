/** The service, as the page speaks to it: by paths that are relative to the page, so that it works
 *  below any prefix, and with the key, if it asks for one. */

import { store } from "./store.js";

const KEY = "tcd-api-key";

/** Kept while the tab is open; where the browser keeps nothing, while the page is. */
export const key = store(tried(() => sessionStorage.getItem(KEY)) ?? "");
key.listen((value) => tried(() => sessionStorage.setItem(KEY, value)));

function tried(does) {
  try {
    return does();
  } catch {
    return undefined;
  }
}

/** What the service refused; `param` names the field. Status 0: it did not answer. */
export class Refused extends Error {
  constructor(status, { message, param = null, code = null }) {
    super(message);
    Object.assign(this, { status, param, code });
  }

  /** What was asked for is not there. A 404 without the service's own words may be a proxy's, while the service is away. */
  get gone() {
    return this.code === "not_found";
  }
}

/** Its answer. Raises `Refused`, or an AbortError if `signal` says so. */
export async function ask(path, { method = "GET", json, form, signal } = {}) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (json) headers["content-type"] = "application/json";
  const body = json ? JSON.stringify(json) : form;
  let answer;
  try {
    answer = await fetch(path, { method: body && method === "GET" ? "POST" : method, headers, body, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(0, { message: "the service does not answer" });
  }
  if (answer.ok) return answer;
  let told;
  try {
    told = (await answer.json()).error;
  } catch {
    told = undefined;
  }
  throw new Refused(answer.status, told ?? { message: `${answer.status} ${answer.statusText}` });
}

/** The objects of a stream of server-sent events, as they come. */
export async function* events(path) {
  const reader = (await ask(path)).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const part = await reader.read().catch(() => {
        throw new Refused(0, { message: "the connection broke" });
      });
      if (part.done) return;
      const told = (text + part.value).split("\n\n");
      text = told.pop();
      for (const event of told) {
        const data = event.split("\n").find((line) => line.startsWith("data: "));
        if (data) yield JSON.parse(data.slice("data: ".length));
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever listens no more holds no connection
  }
}
