/** The form: what a request says, as far as the model can do it. */

import { html } from "./vendor/preact.js";
import { Controls } from "./controls.js";
import { EMPTY, abilities, change, draft as theDraft } from "./draft.js";
import { Fault, NumberField, Section, Slider, faults, lead } from "./fields.js";
import { gallery } from "./kept.js";
import { MaskEditor } from "./mask.js";
import { expected, spelled } from "./pace.js";
import { Pictures } from "./pictures.js";
import { Prompt } from "./prompt.js";
import { requestOf } from "./request.js";
import { Sampling } from "./sampling.js";
import { store, useStore } from "./store.js";
import { submit } from "./tasks.js";
import { Film, Kind } from "./video.js";
import { Weights } from "./weights.js";

const MOST_SEEN = 16;
const NARROW = "(max-width: 800px)"; // what comes of a request stands below the form
const handing = store(false); // a request is on its way
export const said = store({ text: "" }); // beside the button

/** Hands in a draft; what is refused is shown at its field. */
export async function generate(draft, card) {
  if (handing.get()) return;
  faults.set({});
  said.set({ text: "" });
  if (abilities(card).onlyInpaints && !(draft.image && draft.mask)) {
    lead("image", `${card.id} only inpaints: give it a picture, and paint what is to be made anew`);
    return;
  }
  handing.set(true);
  try {
    await submit(requestOf(draft, card), card);
    said.set({ text: "Handed in." });
    if (matchMedia(NARROW).matches) document.querySelector(".results").scrollIntoView();
  } catch (error) {
    const shown = error.param && lead(error.param, error.message);
    said.set({ text: shown ? `Refused: see the field.` : error.message, wrong: true });
  } finally {
    handing.set(false);
  }
}

export function Composer({ cards, card }) {
  const draft = useStore(theDraft);
  const busy = useStore(handing);
  const told = useStore(said);
  useStore(gallery); // what was made last tells how long the next takes
  const can = abilities(card);
  const film = draft.video && can.films;
  const submitted = (event) => {
    event.preventDefault();
    generate(draft, card);
  };
  const keyed = (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    if (!event.repeat) event.currentTarget.requestSubmit();
  };
  const seconds = expected(requestOf(draft, card), card);
  return html`<form id="composer" aria-label="Request" novalidate onSubmit=${submitted} onKeyDown=${keyed}>
    <label class="field"><span>Model</span>
      <select data-field="model" value=${draft.model} onChange=${(event) => change({ model: event.target.value })}>
        ${cards.map(({ id }) => html`<option value=${id} selected=${id === draft.model}>${id}</option>`)}
      </select>
      <small>${card.family}: ${card.tasks.join(", ")}</small>
      <${Fault} name="model" />
    </label>
    ${can.films && html`<${Kind} draft=${draft} />`}
    <${Prompt} draft=${draft} card=${card} />
    <${Weights} field="loras" title="Styles" draft=${draft} offered=${card.loras} further=${Boolean(card.loras_from)} />
    ${film && html`<${Film} draft=${draft} card=${card} />`}
    <${Sampling} draft=${draft} card=${card} />
    ${can.starts && html`<${Start} draft=${draft} film=${film} only=${can.onlyInpaints} />`}
    <${Controls} draft=${draft} card=${card} />
    ${can.resembles && html`<${References} draft=${draft} card=${card} />`}
    <div class="go">
      <button class="primary" disabled=${busy}>${busy ? "Handing in …" : "Generate"}</button>
      <button type="button" class="quiet" onClick=${() => change({ ...EMPTY, model: draft.model })}>Reset</button>
      <p role="status" class=${told.wrong ? "fault" : ""}>${told.text}</p>
      ${seconds && html`<small>takes about ${spelled(seconds)}</small>`}
    </div>
  </form>`;
}

function Start({ draft, film, only }) {
  const { image, mask, strength } = draft;
  const note = image ? (mask && !film ? "with a mask" : "in use") : only ? "needed, with a mask" : "";
  return html`<${Section} title=${film ? "Start picture" : "Start picture and mask"} note=${note} open=${Boolean(image) || only}>
    <${Pictures} name=${film ? "input_reference" : "image"} label="Start picture" value=${image ? [image] : []} set=${([picture]) => change({ image: picture ?? null, mask: null })} />
    ${image && !film && html`<div data-field="mask"><${MaskEditor} image=${image} mask=${mask} set=${(next) => change({ mask: next })} /><${Fault} name="mask" /></div>`}
    ${image && html`<${NumberField} name="strength" label="Strength: how far it is changed" value=${strength} min=${0} max=${1} usual=${mask && !film ? 0.99 : 0.8} />`}
  </${Section}>`;
}

function References({ draft: { references }, card }) {
  const set = (fields) => change({ references: { ...references, ...fields } });
  const names = Object.keys(card.ip_adapters);
  return html`<${Section} title="Pictures to resemble" note=${references.images.length ? `${references.images.length} in use` : "IP-Adapter"} open=${references.images.length > 0}>
    <${Pictures} name="ip_adapter" label="Picture to resemble" value=${references.images} most=${MOST_SEEN} set=${(images) => set({ images })} />
    <${Slider} label="Scale" name="ip_adapter.scale" value=${references.scale} max=${1.5} set=${(scale) => set({ scale })} />
    ${names.length > 1 && html`<label class="field"><span>Adapter</span><select data-field="ip_adapter.name" onChange=${(event) => set({ name: event.target.value })}>
      ${names.map((name) => html`<option value=${name} selected=${name === references.name}>${name}</option>`)}</select></label>`}
  </${Section}>`;
}
