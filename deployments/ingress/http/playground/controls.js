/** ControlNets: each with its picture, and the map that the service makes of it. */

import { html, useEffect, useState } from "./vendor/preact.js";
import { PREPROCESSORS, change, newControl } from "./draft.js";
import { Fault, Section, Slider, useUrl } from "./fields.js";
import { Pictures } from "./pictures.js";
import { ask } from "./service.js";

const CALM_MS = 300; // that a threshold rests before its map is asked for
const SLOW_MS = 2000; // after which a preprocessor is probably being started
const MOST_FRAMES = 256;

export function Controls({ draft, card }) {
  const types = Object.keys(card.controls);
  if (!types.length) return null;
  const set = (index, fields) =>
    change({ controls: draft.controls.map((control, at) => (at === index ? { ...control, ...fields } : control)) });
  const remove = (index) => change({ controls: draft.controls.filter((_, at) => at !== index) });
  const used = draft.controls.filter(({ images }) => images.length).length;
  return html`<${Section} title="Controls" note=${used ? `${used} in use` : types.join(", ")} open=${draft.controls.length > 0}>
    ${draft.controls.map((control, index) => html`<${Control} key=${index} index=${index} control=${control} film=${draft.video}
      offered=${types.includes(control.type)} set=${(fields) => set(index, fields)} remove=${() => remove(index)} />`)}
    <${Fault} name="controls" />
    <div class="tools" data-field="controls">
      ${types.map((type) => html`<button type="button" onClick=${() => change({ controls: [...draft.controls, newControl(type)] })}>Add ${type}</button>`)}
    </div>
  </${Section}>`;
}

function Control({ index, control, film, offered, set, remove }) {
  const { type, images, preprocessed } = control;
  const name = `controls.${index}`;
  const made = PREPROCESSORS.includes(type);
  return html`<fieldset class="control">
    <legend>${type}${offered ? "" : " (not of this model: left out)"}</legend>
    <button type="button" class="quiet corner" aria-label=${`Remove ${type}`} onClick=${remove}>✕</button>
    <${Pictures} name=${name} label=${`Picture for ${type}`} value=${images} most=${film ? MOST_FRAMES : 1} set=${(next) => set({ images: next })} />
    ${made && html`<label class="check"><input type="checkbox" checked=${preprocessed} onChange=${(event) => set({ preprocessed: event.target.checked })} />
      <span>The picture is a ${type} map already</span></label>`}
    ${type === "canny" && !preprocessed && html`
      <${Slider} label="Low threshold" name=${`${name}.low_threshold`} value=${control.low_threshold} max=${255} step=${1} set=${(low_threshold) => set({ low_threshold, high_threshold: Math.max(low_threshold, control.high_threshold) })} />
      <${Slider} label="High threshold" name=${`${name}.high_threshold`} value=${control.high_threshold} max=${255} step=${1} set=${(high_threshold) => set({ high_threshold, low_threshold: Math.min(high_threshold, control.low_threshold) })} />`}
    ${made && !preprocessed && images.length > 0 && html`<${Preview} control=${control} />`}
    <${Slider} label="Scale" name=${`${name}.conditioning_scale`} value=${control.conditioning_scale} max=${2} set=${(conditioning_scale) => set({ conditioning_scale })} />
    <${Slider} label="From step share" name=${`${name}.start`} value=${control.start} set=${(start) => set({ start, end: Math.max(start, control.end) })} />
    <${Slider} label="To step share" name=${`${name}.end`} value=${control.end} set=${(end) => set({ end, start: Math.min(end, control.start) })} />
  </fieldset>`;
}

/** The map of the first picture, as it will be used. */
function Preview({ control: { type, images, low_threshold, high_threshold } }) {
  const [map, see] = useState(null);
  const [said, say] = useState("");
  const url = useUrl(map);
  useEffect(() => {
    const stop = new AbortController();
    const slow = setTimeout(() => say(`waiting for the ${type} map; its preprocessor may have to start first`), SLOW_MS);
    const calm = setTimeout(async () => {
      const form = new FormData();
      form.set("image", images[0]);
      if (type === "canny") {
        form.set("low_threshold", low_threshold);
        form.set("high_threshold", high_threshold);
      }
      try {
        see(await (await ask(`v1/preprocess/${type}`, { form, signal: stop.signal })).blob());
        say("");
      } catch (error) {
        if (error.name !== "AbortError") say(`no ${type} map: ${error.message}`);
      }
      clearTimeout(slow);
    }, CALM_MS);
    return () => {
      stop.abort();
      clearTimeout(calm);
      clearTimeout(slow);
    };
  }, [type, images[0], low_threshold, high_threshold]);
  return html`<div class="map">
    ${url ? html`<img src=${url} alt=${`${type} map`} />` : html`<span class="waits"></span>`}
    <p role="status">${said || (url ? `the ${type} map that it follows` : `making the ${type} map …`)}</p>
  </div>`;
}
