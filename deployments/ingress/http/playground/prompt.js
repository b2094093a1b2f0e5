/** The prompts, how many tokens they are, and in which windows they are read. */

import { html, useEffect, useState } from "./vendor/preact.js";
import { change } from "./draft.js";
import { NumberField, Section, TextField } from "./fields.js";
import { ask } from "./service.js";

const CALM_MS = 400; // that a text rests before it is counted

export function Prompt({ draft, card }) {
  return html`<div class="prompt">
    <${TextField} name="prompt" label="Prompt" value=${draft.prompt} rows=${3} />
    <${Tokens} text=${draft.prompt} draft=${draft} />
    <${Section} title="Negative prompt, weights" note=${draft.negative_prompt ? "in use" : ""} open=${Boolean(draft.negative_prompt)}>
      <${TextField} name="negative_prompt" label="Negative prompt (needs guidance above 1)" value=${draft.negative_prompt} rows=${2} />
      ${draft.negative_prompt && html`<${Tokens} text=${draft.negative_prompt} draft=${draft} />`}
      <label class="check"><input type="checkbox" data-field="prompt_syntax" checked=${(draft.prompt_syntax || card.defaults.prompt_syntax) === "weighted"}
        onChange=${(event) => change({ prompt_syntax: event.target.checked ? "weighted" : "plain" })} />
        <span>Read <code>(word:1.3)</code>, <code>(word)</code> and <code>[word]</code> as weights</span></label>
      <${NumberField} name="clip_skip" label="Clip skip" value=${draft.clip_skip} min=${0} max=${11} step=${1} usual=${card.defaults.clip_skip} />
    </${Section}>
  </div>`;
}

function Tokens({ text, draft: { model, prompt_syntax } }) {
  const [counted, see] = useState(null);
  useEffect(() => {
    const stop = new AbortController();
    const calm = setTimeout(async () => {
      try {
        see(await (await ask("v1/tokenize", { json: { model, prompt: text, ...(prompt_syntax && { prompt_syntax }) }, signal: stop.signal })).json());
      } catch (error) {
        if (error.name !== "AbortError") see(error.status === 400 ? { error: error.message } : null);
      }
    }, CALM_MS);
    return () => {
      stop.abort();
      clearTimeout(calm);
    };
  }, [text, model, prompt_syntax]);
  if (!counted) return html`<p class="tokens"> </p>`;
  if (counted.error) return html`<p class="tokens fault">${counted.error}</p>`;
  const { count, max_model_len, windows } = counted;
  const inWindows = windows.length > 1 ? `, read in ${windows.length} windows` : "";
  return html`<div class="tokens">
    ${windows.length > 1
      ? html`<details><summary>${count} tokens of ${max_model_len}${inWindows}</summary><ol>${windows.map((window) => html`<li>${window}</li>`)}</ol></details>`
      : html`<p>${count} tokens of ${max_model_len}</p>`}
  </div>`;
}
