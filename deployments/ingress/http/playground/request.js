/** From the draft to the request: what of it counts, in the names of the API.
 *
 *  A request is `{route, body}`; pictures in it are Blobs until it is sent. */

import { abilities } from "./draft.js";

const NUMBERS = ["num_inference_steps", "eta", "guidance_scale", "seed", "clip_skip"];
const TOLD_SIZES = ["original_size", "target_size"];
const FORM_FILES = ["image", "mask"];

const weights = (of, offered, further = false) =>
  Object.entries(of)
    .filter(([name, weight]) => weight !== 0 && (further || name in offered))
    .map(([name, weight]) => ({ name, weight }));

function controlOf({ images, low_threshold, high_threshold, ...control }, video) {
  const one = video && images.length > 1 ? images : images[0];
  const canny = control.type === "canny" && !control.preprocessed;
  return { ...control, image: one, ...(canny ? { low_threshold, high_threshold } : {}) };
}

export function requestOf(draft, card) {
  const can = abilities(card);
  const video = draft.video && can.films;
  const image = can.starts ? draft.image : null;
  const body = { model: draft.model, prompt: draft.prompt };
  for (const name of NUMBERS) if (draft[name] !== "") body[name] = draft[name];
  if (draft.negative_prompt) body.negative_prompt = draft.negative_prompt;
  for (const name of TOLD_SIZES) if (can.isToldSizes && draft[name]) body[name] = draft[name];
  if (draft.prompt_syntax) body.prompt_syntax = draft.prompt_syntax;
  if (draft.width || draft.height) body.size = `${draft.width || card.defaults.width}x${draft.height || card.defaults.height}`;
  const loras = weights(draft.loras, card?.loras ?? {}, Boolean(card?.loras_from));
  if (loras.length) body.loras = loras;
  const controls = draft.controls.filter(({ type, images }) => images.length && type in (card?.controls ?? {}));
  if (controls.length) body.controls = controls.map((control) => controlOf(control, video));
  const { images, scale, name } = draft.references;
  if (can.resembles && images.length)
    body.ip_adapter = { image: images, scale, ...(name in card.ip_adapters ? { name } : {}) };
  if (video) {
    Object.assign(body, { num_frames: draft.num_frames, fps: draft.fps });
    if (image) body.input_reference = image;
    const motions = weights(draft.motion_loras, card.motion_loras);
    if (motions.length) body.motion_loras = motions;
  } else {
    body.n = draft.n;
    if (image) body.image = image;
    if (image && draft.mask) body.mask = draft.mask;
  }
  if (image && draft.strength !== "") body.strength = draft.strength;
  const route = video ? "v1/videos" : image ? "v1/images/edits" : "v1/images/generations";
  return { route, body };
}

export const isVideo = ({ route }) => route === "v1/videos";
export const isEdit = ({ route }) => route === "v1/images/edits";

function dataUrl(blob) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** A value with its pictures as text, each as `written` writes it. */
export async function withPictures(value, written = dataUrl) {
  if (value instanceof Blob) return written(value);
  if (Array.isArray(value)) return Promise.all(value.map((one) => withPictures(one, written)));
  if (value === null || typeof value !== "object") return value;
  const fields = Object.entries(value).map(async ([name, one]) => [name, await withPictures(one, written)]);
  return Object.fromEntries(await Promise.all(fields));
}

/** How `ask` sends it, as a job. */
export async function sent(request) {
  if (isVideo(request)) return { json: await withPictures(request.body) };
  const body = { ...request.body, async: true, partial_images: 3 };
  if (!isEdit(request)) return { json: await withPictures(body) };
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) {
    if (FORM_FILES.includes(name)) form.set(name, value);
    else form.set(name, typeof value === "object" ? JSON.stringify(await withPictures(value)) : value);
  }
  return { form };
}
