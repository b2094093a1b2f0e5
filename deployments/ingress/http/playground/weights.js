/** Adapters as chips: a click adds one, its slider says how strongly it acts. Where the model has
 *  others than it lists (`further`), they are named. */

import { html, useState } from "./vendor/preact.js";
import { change } from "./draft.js";
import { Fault, Section, Slider } from "./fields.js";

const MANY = 12; // from here on they can be searched

export function Weights({ field, title, draft, offered, further = false }) {
  const [sought, seek] = useState("");
  const [named, rename] = useState("");
  const names = Object.keys(offered);
  if (!names.length && !further) return null;
  const weights = draft[field];
  const used = Object.keys(weights);
  const set = (name, weight) => change({ [field]: { ...weights, [name]: weight } });
  const remove = (name) => change({ [field]: Object.fromEntries(Object.entries(weights).filter(([one]) => one !== name)) });
  const here = used.filter((name) => further || names.includes(name));
  const away = used.filter((name) => !here.includes(name));
  const shown = names.filter((name) => !used.includes(name) && name.toLowerCase().includes(sought.toLowerCase()));
  const add = () => {
    if (named.trim()) set(named.trim(), 1);
    rename("");
  };
  const typed = (event) => {
    if (event.key !== "Enter" || event.ctrlKey) return;
    event.preventDefault();
    add();
  };
  return html`<${Section} title=${title} note=${here.length ? here.join(", ") : `${names.length} to choose from${further ? ", and others by name" : ""}`} open=${here.length > 0}>
    <div data-field=${field}>
      ${here.map((name) => html`<${Slider} key=${name} label=${name} value=${weights[name]} min=${-1} max=${2} set=${(weight) => set(name, weight)} remove=${() => remove(name)} />`)}
      ${away.length > 0 && html`<small>Not of this model, left out: ${away.join(", ")}</small>`}
      ${names.length >= MANY && html`<label class="field"><span>Search</span><input type="search" value=${sought} onInput=${(event) => seek(event.target.value)} /></label>`}
      ${further && html`<label class="field"><span>Another, by name</span><input type="text" maxlength="100" value=${named} onInput=${(event) => rename(event.target.value)} onKeyDown=${typed} /></label>
        <button type="button" class="chip" disabled=${!named.trim()} onClick=${add}>Add</button>`}
      <div class="chips">${shown.slice(0, 60).map((name) => html`<button type="button" class="chip" key=${name} onClick=${() => set(name, 1)}>+ ${name}</button>`)}</div>
      <${Fault} name=${field} whole=${true} />
    </div>
  </${Section}>`;
}
