/** The parts that forms are made of. Each names the field of the API that it stands for, so that
 *  what the service says of a field stands beside it. */

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { change } from "./draft.js";
import { store, useStore } from "./store.js";

/** What the service said last, by field: `{param: message}`. */
export const faults = store({});

const plain = (param) => param.replaceAll(/\[(\d+)\]/g, ".$1");

/** Of a field, or of one within it that has no place of its own. */
function faultOf(all, name, whole) {
  const [param] = Object.keys(all).filter((one) => plain(one) === name || (whole && plain(one).startsWith(`${name}.`)));
  return param && all[param];
}

/** Shows what is wrong, and leads there; whether there is a place for it. */
export function lead(param, message) {
  faults.set({ [param]: message });
  const name = plain(param);
  for (let place = name; place; place = place.slice(0, Math.max(0, place.lastIndexOf(".")))) {
    const field = document.querySelector(`[data-field="${CSS.escape(place)}"]`);
    if (!field) continue;
    for (let within = field; (within = within.parentElement?.closest("details")); ) within.open = true;
    faults.set({ [place]: message });
    const [target] = [field, ...field.querySelectorAll("*")].filter((one) => one.matches("input, textarea, select, button"));
    target?.focus();
    return true;
  }
  return false;
}

export function Fault({ name, whole = false }) {
  const fault = faultOf(useStore(faults), name, whole);
  return fault ? html`<p class="fault" id=${`fault-${name}`} role="alert">${fault}</p>` : null;
}

const described = (all, name) => (faultOf(all, name) ? { "aria-invalid": "true", "aria-describedby": `fault-${name}` } : {});

const numberOf = (text) => (text === "" ? "" : Number(text));

/** Keeps what is being written as it is: "0.0" is on its way to 0.05. */
function NumberInput({ value, set, ...rest }) {
  const [text, write] = useState(null);
  const written = (event) => {
    write(event.target.value);
    set(numberOf(event.target.value));
  };
  return html`<input type="number" step="any" value=${text ?? value} onInput=${written} onBlur=${() => write(null)} ...${rest} />`;
}

export function NumberField({ name, label, value, set, min, max, step = "any", usual }) {
  const all = useStore(faults);
  return html`<label class="field">
    <span>${label}</span>
    <${NumberInput} inputmode="decimal" data-field=${name} ...${described(all, name)} value=${value} min=${min} max=${max} step=${step}
      placeholder=${usual ?? ""} set=${set ?? ((given) => change({ [name]: given }))} />
    <${Fault} name=${name} />
  </label>`;
}

export function TextField({ name, label, value, rows = 0 }) {
  const all = useStore(faults);
  const set = (event) => change({ [name]: event.target.value });
  const same = { "data-field": name, ...described(all, name), value, onInput: set };
  return html`<label class="field">
    <span>${label}</span>
    ${rows ? html`<textarea rows=${rows} ...${same}></textarea>` : html`<input type="text" ...${same} />`}
    <${Fault} name=${name} />
  </label>`;
}

export function Slider({ name, label, value, set, min = 0, max = 1, step = 0.05, remove }) {
  return html`<div class="slider">
    <label><span>${label}</span><input type="range" data-field=${name} min=${Math.min(min, value)} max=${Math.max(max, value)} step=${step} value=${value}
      onInput=${(event) => set(Number(event.target.value))} /></label>
    <${NumberInput} class="exact" aria-label=${`${label}, exactly`} value=${value} set=${(given) => given !== "" && set(given)} />
    ${remove && html`<button type="button" class="quiet" aria-label=${`Remove ${label}`} onClick=${remove}>✕</button>`}
  </div>`;
}

export function Section({ title, note, open = false, children }) {
  return html`<details class="section" open=${open}>
    <summary><span>${title}</span>${note && html`<small>${note}</small>`}</summary>
    <div class="inside">${children}</div>
  </details>`;
}

/** An object URL for as long as it is shown. */
export function useUrl(blob) {
  const [url, see] = useState("");
  useEffect(() => {
    if (!blob) return see("");
    const made = URL.createObjectURL(blob);
    see(made);
    return () => URL.revokeObjectURL(made);
  }, [blob]);
  return url;
}

/** A window over the page; closed by Escape, by its button, or by a click beside it. */
export function Dialog({ title, close, wide = false, children }) {
  const box = useRef(null);
  useEffect(() => {
    const before = document.activeElement;
    box.current.showModal();
    return () => before?.focus?.();
  }, []);
  return html`<dialog ref=${box} class=${wide ? "wide" : ""} aria-label=${title} onClose=${close}
    onClick=${(event) => event.target === box.current && box.current.close()}>
    <header><h2>${title}</h2><button type="button" class="quiet" aria-label="Close" onClick=${() => box.current.close()}>✕</button></header>
    <div class="inside">${children}</div>
  </dialog>`;
}
