/** The page: looks at what the service offers, and shows the form, the queue and the gallery. */

import { html, render } from "./vendor/preact.js";
import { Composer, said } from "./composer.js";
import { EMPTY, change, draft, draftOf, picturesOf } from "./draft.js";
import { Gallery } from "./gallery.js";
import { openGallery, recall, remember, trouble } from "./kept.js";
import { parametersOf } from "./parameters.js";
import { isPicture, picturesIn } from "./pictures.js";
import { Queue } from "./queue.js";
import { Refused, ask, key } from "./service.js";
import { store, useStore } from "./store.js";
import { resume } from "./tasks.js";

const LOOK_MS = 5000;
const PATIENCE_MS = 10_000;
const CALM_MS = 400; // that the form rests before it is kept

const told = store({ about: "", prompts: [] }); // to newcomers
const known = store({ cards: [], trouble: "looking for models …", status: 0 });

async function look() {
  try {
    const found = (await (await ask("v1/models", { signal: AbortSignal.timeout(PATIENCE_MS) })).json()).data;
    // One that is away for a moment stays chosen, with the form that is being filled in.
    const away = known.get().cards.filter(({ id }) => id === draft.get().model && !found.some((card) => card.id === id));
    const cards = [...found, ...away];
    const trouble = !cards.length ? "no model is ready yet" : away.length ? `${draft.get().model} is not ready now` : "";
    if (JSON.stringify(cards) !== JSON.stringify(known.get().cards) || trouble !== known.get().trouble) known.set({ cards, trouble, status: 200 });
    if (cards.length && !cards.some(({ id }) => id === draft.get().model)) change({ model: cards[0].id });
  } catch (error) {
    const told = error instanceof Refused ? error.message : "the service does not answer";
    known.set({ ...known.get(), trouble: told, status: error.status ?? 0 });
  }
}

/** Again and again, one after the other. */
async function keepLooking() {
  if (!document.hidden) await look();
  setTimeout(keepLooking, LOOK_MS);
}

/** What the service says of itself to newcomers. */
async function introduction() {
  try {
    return await (await ask("playground/about", { signal: AbortSignal.timeout(PATIENCE_MS) })).json();
  } catch {
    return { about: "", prompts: [] };
  }
}

/** A request, if it is one: files say what they like. */
function readable(request) {
  if (Array.isArray(request)) return undefined;
  try {
    draftOf(request);
    picturesOf(request);
    return request;
  } catch {
    return undefined;
  }
}

/** A picture dropped on the page, or pasted into it: its parameters, if it has any. */
async function take(blob) {
  const request = readable(await parametersOf(blob));
  if (!request && !(await isPicture(blob))) {
    said.set({ text: "This is no picture that the browser can read.", wrong: true });
    return;
  }
  if (!request) {
    change({ image: blob, mask: null });
    said.set({ text: "The picture says nothing of how it was made; it is the start picture now." });
    return;
  }
  const asked = draftOf(request);
  const offered = known.get().cards.some(({ id }) => id === asked.model);
  change({ ...asked, model: offered ? asked.model : draft.get().model });
  const lacking = [...picturesOf(request), ...(asked.model && !offered ? [`the model ${asked.model}`] : [])];
  said.set({ text: lacking.length ? `Taken from the picture, but for ${lacking.join(", ")}.` : "Taken from the picture." });
}

function Page() {
  const examples = useStore(told);
  const { cards, trouble: wrong, status } = useStore(known);
  const { model } = useStore(draft);
  const secret = useStore(key);
  const unkept = useStore(trouble);
  const card = cards.find(({ id }) => id === model);
  const locked = status === 401 || status === 403;
  return html`
    <header class="top">
      <h1>tcd playground</h1>
      <nav aria-label="Elsewhere"><a href="docs">API</a> <a href="v1/models">Models</a> <a href="metrics">Metrics</a></nav>
      <label class="key ${locked ? "asked" : ""}"><span>API key</span>
        <input type="text" autocomplete="off" spellcheck="false" value=${secret} placeholder=${locked ? "needed" : "if one is asked for"} onChange=${(event) => (key.set(event.target.value), look())} /></label>
    </header>
    ${wrong && html`<p class="notice" role="status">${wrong}</p>`}
    ${unkept && html`<p class="notice" role="status">${unkept}</p>`}
    <main>
      ${card && html`<${Composer} cards=${cards} card=${card} />`}
      <div class="results"><${Queue} /><${Gallery} cards=${cards} examples=${examples} /></div>
    </main>`;
}

function listen() {
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    const [picture] = picturesIn(event.dataTransfer);
    if (picture) take(picture);
  });
  addEventListener("paste", (event) => {
    const [picture] = picturesIn(event.clipboardData);
    if (picture && !event.defaultPrevented) take(picture);
  });
  let calm;
  draft.listen((now) => {
    clearTimeout(calm);
    calm = setTimeout(() => remember("draft", now), CALM_MS);
  });
}

async function start() {
  draft.set({ ...EMPTY, ...(await recall("draft")) });
  await openGallery();
  listen();
  render(html`<${Page} />`, document.getElementById("page"));
  const [examples] = await Promise.all([introduction(), keepLooking()]);
  told.set(examples);
  if (!draft.get().prompt && examples.prompts.length) change({ prompt: examples.prompts[0] });
  await resume();
}

start();
