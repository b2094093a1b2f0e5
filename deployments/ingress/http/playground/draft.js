/** The draft: all that the form holds, whatever the model takes of it.
 *
 *  Numbers that are left to the model are "". Pictures are Blobs. */

import { store } from "./store.js";

export const PREPROCESSORS = ["depth", "canny"]; // the service makes these maps itself

export const EMPTY = {
  model: "",
  video: false,
  prompt: "",
  negative_prompt: "",
  prompt_syntax: "", // the model's own
  clip_skip: "",
  original_size: "",
  target_size: "",
  width: "",
  height: "",
  n: 1,
  num_inference_steps: "",
  eta: "",
  guidance_scale: "",
  seed: "",
  loras: {}, // weight by name
  image: null,
  mask: null,
  strength: "",
  controls: [],
  references: { images: [], scale: 0.5, name: "" },
  num_frames: 16,
  fps: 8,
  motion_loras: {},
};

export const draft = store(EMPTY);

/** Some fields anew. */
export function change(fields) {
  draft.set((now) => ({ ...now, ...fields }));
}

/** A control as it is added. */
export function newControl(type) {
  return {
    type,
    images: [],
    conditioning_scale: 0.5,
    start: 0,
    end: 1,
    low_threshold: 100,
    high_threshold: 200,
    preprocessed: !PREPROCESSORS.includes(type),
  };
}

/** What a model can do of what a form has. */
export function abilities(card) {
  const tasks = card?.tasks ?? [];
  return {
    starts: tasks.includes("image-to-image") || tasks.includes("inpainting"),
    onlyInpaints: tasks.length > 0 && !tasks.includes("text-to-image"),
    films: tasks.includes("video"),
    resembles: Boolean(card?.ip_adapter),
    isToldSizes: card?.family === "sdxl",
  };
}

/** The draft of a request that a file or a task carries; without pictures that it only names. */
export function draftOf(request) {
  const [width, height] = (request.size ?? "").split("x").map(Number);
  const weights = (list) => Object.fromEntries((list ?? []).map(({ name, weight }) => [name, weight ?? 1]));
  const told = { ...EMPTY, width: width || "", height: height || "", video: "num_frames" in request };
  for (const name of Object.keys(EMPTY))
    if (["string", "number"].includes(typeof request[name]) && typeof EMPTY[name] !== "object") told[name] = request[name];
  told.loras = weights(request.loras);
  told.motion_loras = weights(request.motion_loras);
  return told;
}

/** The names of pictures that a request had, as words. */
export function picturesOf(request) {
  const had = [];
  if (request.image ?? request.input_reference) had.push("a start picture");
  if (request.mask) had.push("a mask");
  for (const control of request.controls ?? []) had.push(`a picture for ${control.type}`);
  if (request.ip_adapter) had.push("pictures to resemble");
  return had;
}
