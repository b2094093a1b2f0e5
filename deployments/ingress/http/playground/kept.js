/** What the browser keeps between visits, in IndexedDB: the draft, the tasks that are not over,
 *  and the gallery. Where it keeps nothing (a private window, say), the page works without. */

import { createStore, del, entries, get, set } from "./vendor/idb-keyval.js";
import { store } from "./store.js";

// Another service below another prefix of this host keeps its own.
const place = new URL(".", location.href).pathname;
const stores = {
  page: createStore(`tcd-page ${place}`, "page"),
  tasks: createStore(`tcd-tasks ${place}`, "tasks"),
  gallery: createStore(`tcd-gallery ${place}`, "items"),
};

/** Why nothing is kept, if so. */
export const trouble = store("");

async function tried(does, otherwise) {
  try {
    return await does();
  } catch (error) {
    trouble.set(`This browser keeps nothing of the page: ${error.message}`);
    return otherwise;
  }
}

export const recall = (name) => tried(() => get(name, stores.page), undefined);
export const remember = (name, value) => tried(() => set(name, value, stores.page));

/** Tasks that were not over, each by itself: other tabs have theirs. */
export const openTasks = async () => (await tried(() => entries(stores.tasks), [])).map(([, task]) => task);
export const keepTask = (task) => tried(() => set(task.id, task, stores.tasks));
export const forgetTask = (id) => tried(() => del(id, stores.tasks));

/** Items, the newest first: `{id, made, blob, request, size, seed, took_s}`; `request` with its
 *  pictures as Blobs. */
export const gallery = store([]);

export async function openGallery() {
  const items = (await tried(() => entries(stores.gallery), [])).map(([, item]) => item);
  gallery.set(items.sort((one, other) => other.made - one.made));
}

export async function keep(item) {
  gallery.set((items) => [item, ...items.filter(({ id }) => id !== item.id)]);
  await tried(() => set(item.id, item, stores.gallery));
}

export async function discard(id) {
  gallery.set((items) => items.filter((item) => item.id !== id));
  await tried(() => del(id, stores.gallery));
}

export const isFilm = ({ blob }) => blob.type.startsWith("video/");
