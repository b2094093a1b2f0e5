/** What was made, kept in the browser: look closer, compare, take up again. */

import { html, useState } from "./vendor/preact.js";
import { EMPTY, change, draftOf, newControl, draft as theDraft } from "./draft.js";
import { generate } from "./composer.js";
import { Dialog, useUrl } from "./fields.js";
import { discard, gallery, isFilm } from "./kept.js";
import { isVideo } from "./request.js";
import { key } from "./service.js";
import * as snippets from "./snippets.js";
import { useStore } from "./store.js";
import { spelled } from "./pace.js";

const VARIATIONS = 4;
const PAGE = 48; // items that are shown at once

const name = ({ id, seed, blob }) => `${seed ?? id.split("/")[0]}.${blob.type.split("/")[1]}`;
const titled = ({ request, seed }) => `${request.body.prompt || "no prompt"}, seed ${seed}`;

/** The draft that made an item, its pictures with it. */
function draftFrom({ request }) {
  const { body } = request;
  const { image, mask, input_reference, controls = [], ip_adapter } = body;
  return {
    ...draftOf(body),
    video: isVideo(request),
    image: image ?? input_reference ?? null,
    mask: mask ?? null,
    controls: controls.map(({ image: of, ...control }) => ({ ...newControl(control.type), ...control, images: [of].flat() })),
    references: ip_adapter ? { images: ip_adapter.image, scale: ip_adapter.scale, name: ip_adapter.name ?? "" } : EMPTY.references,
  };
}

export function Gallery({ cards, examples }) {
  const items = useStore(gallery);
  const [chosen, choose] = useState([]); // to be compared
  const [open, show] = useState(null);
  const [shown, more] = useState(PAGE);
  if (!items.length) return html`<${Empty} examples=${examples} />`;
  const toggle = (id) => choose((now) => (now.includes(id) ? now.filter((one) => one !== id) : [...now.slice(-1), id]));
  const pair = chosen.map((id) => items.find((item) => item.id === id)).filter(Boolean);
  return html`<section class="gallery" aria-label="Gallery">
    <header><h2>Gallery</h2>
      ${pair.length === 1 && html`<small>choose another one to compare it with</small>`}
      ${pair.length === 2 && html`<button type="button" onClick=${() => show("pair")}>Compare the two</button>`}</header>
    <ul class="tiles">${items.slice(0, shown).map((item) => html`<${Tile} key=${item.id} item=${item} chosen=${chosen.includes(item.id)} toggle=${() => toggle(item.id)} open=${() => show(item.id)} />`)}</ul>
    ${items.length > shown && html`<button type="button" onClick=${() => more(shown + PAGE)}>Show more (${items.length - shown})</button>`}
    ${open === "pair" && pair.length === 2 && html`<${Compare} pair=${pair} close=${() => show(null)} />`}
    ${items.filter(({ id }) => id === open).map((item) => html`<${Viewer} key=${item.id} item=${item} cards=${cards} close=${() => show(null)} />`)}
  </section>`;
}

function Empty({ examples }) {
  return html`<section class="empty" aria-label="Gallery">
    <h2>Nothing here yet</h2>
    <p>${examples.about || "Say what is to be seen, and press Generate. What is made stays in this browser."}</p>
    ${examples.prompts.length > 0 && html`<p>Try one of these:</p>
      <div class="chips">${examples.prompts.map((prompt) => html`<button type="button" class="chip" onClick=${() => change({ prompt })}>${prompt}</button>`)}</div>`}
    <p><small>A picture that this service made, dropped on the page, gives back what it was made of.</small></p>
  </section>`;
}

function Shown({ item, url, ...rest }) {
  return isFilm(item) ? html`<video src=${url} loop muted playsinline aria-label=${titled(item)} ...${rest}></video>` : html`<img src=${url} alt=${titled(item)} ...${rest} />`;
}

function Tile({ item, chosen, toggle, open }) {
  const url = useUrl(item.blob);
  return html`<li class="tile">
    <button type="button" aria-label=${`Open: ${titled(item)}`} onClick=${open}><${Shown} item=${item} url=${url} autoplay=${isFilm(item)} /></button>
    ${!isFilm(item) && html`<label class="pick"><input type="checkbox" checked=${chosen} onChange=${toggle} aria-label=${`Compare: ${titled(item)}`} /></label>`}
  </li>`;
}

function Viewer({ item, cards, close }) {
  const url = useUrl(item.blob);
  const [zoom, enlarge] = useState(0); // 0: as large as there is room
  const [copied, note] = useState("");
  const [code, reveal] = useState("");
  const card = cards.find(({ id }) => id === item.request.body.model);
  const film = isFilm(item);
  const take = (fields) => (change(fields), close());
  const controls = Object.keys(card?.controls ?? {});
  const keyed = Boolean(key.get());
  const varied = () => {
    const draft = { ...draftFrom(item), seed: item.seed + 1, n: VARIATIONS };
    generate(draft, card);
    close();
  };
  const copy = async (label, text) => {
    reveal(await text);
    try {
      await navigator.clipboard.writeText(await text);
      note(`${label} copied`);
    } catch {
      note(`${label}: copy it from below`); // the browser allows it on https and localhost alone
    }
  };
  const { request } = item;
  return html`<${Dialog} title=${titled(item)} close=${close} wide=${true}>
    <div class="stage" tabindex="0" aria-label="The picture">
      <${Shown} item=${item} url=${url} controls=${film} autoplay=${film} style=${zoom ? { width: `${zoom * 100}%`, maxWidth: "none", maxHeight: "none" } : {}} class=${zoom ? "" : "fits"} />
    </div>
    <p class="facts">${item.request.body.model}, ${item.size}, seed ${item.seed}${item.took_s ? `, ${spelled(item.took_s)}` : ""}</p>
    <div class="tools">
      ${!film && html`<label class="zoom"><span>Zoom</span><input type="range" min="0" max="8" step="0.5" value=${zoom} onInput=${(event) => enlarge(Number(event.target.value))} /></label>`}
      <a class="button" href=${url} download=${name(item)}>Download</a>
      <button type="button" onClick=${() => take({ ...draftFrom(item), seed: item.seed })}>Again with this seed</button>
      <button type="button" onClick=${() => take({ ...draftFrom(item), seed: "" })}>Its settings</button>
      ${!film && card && html`<button type="button" onClick=${varied}>${VARIATIONS} variations of the seed</button>`}
      ${!film && html`<button type="button" onClick=${() => take({ image: item.blob, mask: null })}>Start from it</button>`}
      ${!film && controls.map((type) => html`<button type="button" onClick=${() => take({ controls: [...theDraft.get().controls, { ...newControl(type), images: [item.blob] }] })}>Control: ${type}</button>`)}
      ${!film && html`<button type="button" onClick=${() => take({ references: { ...theDraft.get().references, images: [...theDraft.get().references.images, item.blob] } })}>Resemble it</button>`}
      <button type="button" class="danger" onClick=${() => (discard(item.id), close())}>Delete</button>
    </div>
    <div class="tools">
      <span>The request as</span>
      <button type="button" onClick=${() => copy("curl", snippets.curl(request, keyed))}>curl</button>
      <button type="button" onClick=${() => copy("Python", snippets.openai(request, keyed))}>Python (openai)</button>
      <button type="button" onClick=${() => copy("Ray handle", snippets.handle(request))}>Ray handle</button>
      <span role="status">${copied}</span>
    </div>
    ${code && html`<pre tabindex="0" aria-label="The request">${code}</pre>`}
  </${Dialog}>`;
}

/** Two pictures, one over the other; a slider says how much of which. */
function Compare({ pair: [one, other], close }) {
  const [share, slide] = useState(50);
  return html`<${Dialog} title="Compare" close=${close} wide=${true}>
    <div class="compare">
      <img src=${useUrl(one.blob)} alt=${titled(one)} />
      <img src=${useUrl(other.blob)} alt=${titled(other)} style=${{ clipPath: `inset(0 0 0 ${share}%)` }} />
    </div>
    <label class="zoom"><span>${titled(one)}</span><input type="range" min="0" max="100" value=${share} aria-label="How much of the first" onInput=${(event) => slide(Number(event.target.value))} /><span>${titled(other)}</span></label>
  </${Dialog}>`;
}
