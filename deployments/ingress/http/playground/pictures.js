/** A place for pictures: chosen, dropped, pasted, or taken from the gallery. */

import { html, useRef, useState } from "./vendor/preact.js";
import { Dialog, Fault, faults, useUrl } from "./fields.js";
import { gallery, isFilm } from "./kept.js";
import { useStore } from "./store.js";

export const picturesIn = (transfer) => [...(transfer?.files ?? [])].filter(({ type }) => type.startsWith("image/"));

/** Whether a file is what its name says. */
export async function isPicture(blob) {
  try {
    (await createImageBitmap(blob)).close();
    return true;
  } catch {
    return false;
  }
}

/** Args: `value`, a list of Blobs; `most` of them; `set` takes the next list. */
export function Pictures({ name, label, value, set, most = 1 }) {
  const [over, hover] = useState(false);
  const [choosing, choose] = useState(false);
  const file = useRef(null);
  const add = async (given) => {
    const wanted = given.slice(0, most);
    const pictures = [];
    for (const one of wanted) if (await isPicture(one)) pictures.push(one); // one after the other: they are large when decoded
    if (pictures.length) set([...(most > 1 ? value : []), ...pictures].slice(0, most));
    if (pictures.length < wanted.length) faults.set({ [name]: "This is no picture that the browser can read." });
  };
  const drop = (event) => {
    event.preventDefault();
    event.stopPropagation();
    hover(false);
    add(picturesIn(event.dataTransfer));
  };
  const paste = (event) => {
    const pictures = picturesIn(event.clipboardData);
    if (!pictures.length) return;
    event.preventDefault();
    event.stopPropagation();
    add(pictures);
  };
  return html`<div class=${`pictures ${over ? "over" : ""}`} role="group" aria-label=${label} data-field=${name}
    onDragOver=${(event) => (event.preventDefault(), hover(true))} onDragLeave=${() => hover(false)} onDrop=${drop} onPaste=${paste}>
    ${value.map((blob, index) => html`<${Thumbnail} key=${index} blob=${blob} label=${`${label} ${index + 1}`} remove=${() => set(value.filter((_, at) => at !== index))} />`)}
    <div class="offer">
      <button type="button" onClick=${() => file.current.click()}>${value.length && most === 1 ? "Another" : "Choose a picture"}</button>
      <button type="button" class="quiet" onClick=${() => choose(true)}>From the gallery</button>
      <small>or drop or paste one here</small>
      <input ref=${file} type="file" hidden accept="image/png,image/jpeg,image/webp" multiple=${most > 1} aria-label=${`${label}: file`} tabindex="-1"
        onChange=${(event) => (add([...event.target.files]), (event.target.value = ""))} />
    </div>
    <${Fault} name=${name} whole=${true} />
    ${choosing && html`<${Chooser} close=${() => choose(false)} take=${(blob) => (add([blob]), choose(false))} />`}
  </div>`;
}

function Thumbnail({ blob, label, remove }) {
  return html`<span class="thumbnail">
    <img src=${useUrl(blob)} alt=${label} />
    <button type="button" class="quiet" aria-label=${`Remove ${label}`} onClick=${remove}>✕</button>
  </span>`;
}

function Chooser({ close, take }) {
  const items = useStore(gallery).filter((item) => !isFilm(item));
  return html`<${Dialog} title="A picture of the gallery" close=${close}>
    ${items.length ? html`<div class="tiles">${items.map((item) => html`<${Choice} key=${item.id} item=${item} take=${take} />`)}</div>` : html`<p>There is none yet.</p>`}
  </${Dialog}>`;
}

function Choice({ item, take }) {
  return html`<button type="button" class="tile" aria-label=${`Take: ${item.request.body.prompt}, seed ${item.seed}`} onClick=${() => take(item.blob)}>
    <img src=${useUrl(item.blob)} alt="" />
  </button>`;
}
