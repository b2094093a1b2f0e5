/** Size, steps, eta, guidance, seed and count. */

import { html } from "./vendor/preact.js";
import { abilities, change } from "./draft.js";
import { Fault, NumberField, Section, TextField } from "./fields.js";
import { gallery } from "./kept.js";
import { useStore } from "./store.js";

const RATIOS = ["1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16"];
const MULTIPLE = 8;
const MOST_SEED = 2 ** 32; // of those that the dice throws

/** Width and height of a ratio with about the model's usual number of pixels, within its limits. */
export function sizeOf(ratio, { defaults, limits }) {
  const pixels = Math.min(defaults.width * defaults.height, limits.max_pixels);
  const rounded = (side) => Math.round(Math.min(limits.max_side, Math.max(limits.min_side, side)) / MULTIPLE) * MULTIPLE;
  let width = rounded(Math.sqrt(pixels * ratio));
  let height = rounded(Math.sqrt(pixels / ratio));
  while (width * height > limits.max_pixels) {
    if (width > height) width -= MULTIPLE;
    else height -= MULTIPLE;
  }
  return { width, height };
}

const ratioOf = (text) => {
  const [width, height] = text.split(":").map(Number);
  return width / height;
};

async function asPicture(draft, card) {
  const { width, height } = await createImageBitmap(draft.image);
  const { limits } = card;
  const scale = Math.min(1, limits.max_side / Math.max(width, height), Math.sqrt(limits.max_pixels / width / height));
  const side = (length) => Math.max(limits.min_side, Math.floor((length * scale) / MULTIPLE) * MULTIPLE);
  change({ width: side(width), height: side(height) });
}

export function Sampling({ draft, card }) {
  const { defaults, limits } = card;
  const can = abilities(card);
  const told = Boolean(draft.original_size || draft.target_size);
  const last = useStore(gallery)[0]?.seed;
  return html`<fieldset class="group" data-field="size">
      <legend>Size</legend>
      <div class="chips">
        ${RATIOS.map((text) => {
          const size = sizeOf(ratioOf(text), card);
          const now = size.width === draft.width && size.height === draft.height;
          return html`<button type="button" class="chip" aria-pressed=${now} onClick=${() => change(size)}>${text}</button>`;
        })}
        ${draft.image && can.starts && html`<button type="button" class="chip" onClick=${() => asPicture(draft, card)}>As the picture</button>`}
        <button type="button" class="chip" aria-label="Swap width and height" onClick=${() => change({ width: draft.height, height: draft.width })}>⇄</button>
      </div>
      <div class="row">
        <${NumberField} name="width" label="Width" value=${draft.width} min=${limits.min_side} max=${limits.max_side} step=${MULTIPLE} usual=${defaults.width} />
        <${NumberField} name="height" label="Height" value=${draft.height} min=${limits.min_side} max=${limits.max_side} step=${MULTIPLE} usual=${defaults.height} />
      </div>
      <${Fault} name="size" />
      ${can.isToldSizes && html`<${Section} title="What the model is told of sizes" note=${told ? "in use" : ""} open=${told}>
        <p><small>WIDTHxHEIGHT; the picture's own where nothing stands.</small></p>
        <div class="row">
          <${TextField} name="original_size" label="Before it was scaled" value=${draft.original_size} />
          <${TextField} name="target_size" label="Now" value=${draft.target_size} />
        </div>
      </${Section}>`}
    </fieldset>
    <div class="row">
      <${NumberField} name="num_inference_steps" label="Steps" value=${draft.num_inference_steps} min=${1} max=${limits.max_steps} step=${1} usual=${defaults.num_inference_steps} />
      <${NumberField} name="eta" label="Eta" value=${draft.eta} min=${0} max=${1} usual=${defaults.eta} />
      <${NumberField} name="guidance_scale" label="Guidance" value=${draft.guidance_scale} min=${0} max=${30} usual=${defaults.guidance_scale} />
      ${!draft.video && html`<${NumberField} name="n" label="Pictures" value=${draft.n} min=${1} max=${10} step=${1} set=${(n) => change({ n: n === "" ? 1 : n })} />`}
    </div>
    <div class="seed">
      <${NumberField} name="seed" label="Seed" value=${draft.seed} min=${0} step=${1} usual="another each time" />
      <button type="button" title="A seed by chance, to be used again" onClick=${() => change({ seed: Math.floor(Math.random() * MOST_SEED) })}>Dice</button>
      <button type="button" title="Keep the seed of the last picture" disabled=${last === undefined} onClick=${() => change({ seed: last })}>Lock the last</button>
      <button type="button" title="Another seed each time" disabled=${draft.seed === ""} onClick=${() => change({ seed: "" })}>Unlock</button>
    </div>`;
}
