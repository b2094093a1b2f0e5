/** The request that a file of this service carries (docs/clients.md), read in the browser; of other
 *  programs' files, what AUTOMATIC1111's text says. */

const EXIF_POINTER = 0x8769;
const IMAGE_DESCRIPTION = 0x010e;
const USER_COMMENT = 0x9286;

const ascii = (bytes) => new TextDecoder("latin1").decode(bytes);
const utf8 = (bytes) => new TextDecoder().decode(bytes);

/** `{request}` as the API takes it, or undefined. */
export async function parametersOf(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const texts = textsOf(bytes);
  try {
    const own = texts.tcd ? JSON.parse(texts.tcd) : JSON.parse(texts.description ?? "{}").tcd;
    if (own) return own;
  } catch {
    // Someone else's text in the same place.
  }
  return texts.parameters ? fromInfotext(texts.parameters) : undefined;
}

function textsOf(bytes) {
  try {
    if (bytes[0] === 0x89 && ascii(bytes.subarray(1, 4)) === "PNG") return pngTexts(bytes);
    if (bytes[0] === 0xff && bytes[1] === 0xd8) return jpegTexts(bytes);
    if (ascii(bytes.subarray(0, 4)) === "RIFF" && ascii(bytes.subarray(8, 12)) === "WEBP") return webpTexts(bytes);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // a file that ends too early
  }
  return {};
}

function pngTexts(bytes) {
  const view = new DataView(bytes.buffer);
  const texts = {};
  for (let at = 8; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at);
    const type = ascii(bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    const end = data.indexOf(0);
    const name = ascii(data.subarray(0, end));
    if (type === "tEXt") texts[name] = ascii(data.subarray(end + 1));
    if (type === "iTXt" && data[end + 1] === 0) {
      const language = data.indexOf(0, end + 3);
      texts[name] = utf8(data.subarray(data.indexOf(0, language + 1) + 1));
    }
    at += length + 12;
  }
  return texts;
}

function jpegTexts(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda; ) {
    const length = view.getUint16(at + 2);
    if (bytes[at + 1] === 0xe1 && ascii(bytes.subarray(at + 4, at + 10)) === "Exif\0\0")
      return exifTexts(bytes.subarray(at + 10, at + 2 + length));
    at += 2 + length;
  }
  return {};
}

function webpTexts(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at + 4, true);
    if (ascii(bytes.subarray(at, at + 4)) === "EXIF") {
      const data = bytes.subarray(at + 8, at + 8 + length);
      return exifTexts(ascii(data.subarray(0, 6)) === "Exif\0\0" ? data.subarray(6) : data);
    }
    at += 8 + length + (length % 2);
  }
  return {};
}

/** A TIFF's description, and the comment in its EXIF directory. */
function exifTexts(tiff) {
  const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.byteLength);
  const little = ascii(tiff.subarray(0, 2)) === "II";
  const texts = {};
  const directories = [view.getUint32(4, little)];
  for (let round = 0; directories.length && round < 4; round++) {
    const start = directories.pop();
    for (let entry = 0; entry < view.getUint16(start, little); entry++) {
      const at = start + 2 + entry * 12;
      const tag = view.getUint16(at, little);
      const count = view.getUint32(at + 4, little);
      const place = count > 4 ? view.getUint32(at + 8, little) : at + 8;
      if (tag === EXIF_POINTER) directories.push(view.getUint32(at + 8, little));
      if (tag === IMAGE_DESCRIPTION) texts.description = utf8(tiff.subarray(place, place + count)).replace(/\0+$/, "");
      if (tag === USER_COMMENT) texts.parameters = comment(tiff.subarray(place, place + count), little);
    }
  }
  return texts;
}

function comment(bytes, little) {
  const kind = ascii(bytes.subarray(0, 8));
  const text = bytes.subarray(8);
  if (kind.startsWith("UNICODE")) return new TextDecoder(little ? "utf-16le" : "utf-16be").decode(text);
  return utf8(text);
}

/** `prompt`, `Negative prompt: ...`, `Steps: 4, Seed: 7, Size: 64x64, ...`. */
function fromInfotext(text) {
  const lines = text.trim().split("\n");
  if (!/^Steps: \d+/.test(lines.at(-1))) return undefined;
  const said = Object.fromEntries([...lines.pop().matchAll(/([A-Z][\w ]*): ("[^"]*"|[^,]*)/g)].map(([, name, value]) => [name, value]));
  const [prompt, negative] = lines.join("\n").split(/^Negative prompt: /m);
  const request = { prompt: prompt.trim() };
  if (negative) request.negative_prompt = negative.trim();
  const names = { Steps: "num_inference_steps", Seed: "seed", "CFG scale": "guidance_scale", "Denoising strength": "strength" };
  for (const [theirs, ours] of Object.entries(names)) if (said[theirs]) request[ours] = Number(said[theirs]);
  if (said.Size) request.size = said.Size;
  return request;
}
