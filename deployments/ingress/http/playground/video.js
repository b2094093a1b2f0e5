/** Still pictures or a video, and its length. */

import { html } from "./vendor/preact.js";
import { change } from "./draft.js";
import { NumberField } from "./fields.js";
import { Weights } from "./weights.js";

export function Kind({ draft }) {
  return html`<div class="kinds" role="group" aria-label="What is made">
    <button type="button" aria-pressed=${!draft.video} onClick=${() => change({ video: false })}>Pictures</button>
    <button type="button" aria-pressed=${draft.video} onClick=${() => change({ video: true })}>Video</button>
  </div>`;
}

export function Film({ draft, card }) {
  const seconds = draft.num_frames / draft.fps;
  return html`<div class="row">
      <${NumberField} name="num_frames" label="Frames" value=${draft.num_frames} min=${1} max=${card.limits.max_frames} step=${1} />
      <${NumberField} name="fps" label="Frames a second" value=${draft.fps} min=${1} max=${60} step=${1} />
      <p class="field"><span>Length</span><output>${Number.isFinite(seconds) ? `${seconds.toFixed(1)} s` : ""}</output></p>
    </div>
    <${Weights} field="motion_loras" title="Camera" draft=${draft} offered=${card.motion_loras} />`;
}
