/** The request as others would send it. Pictures stand in it as files beside the program. */

import { isEdit, isVideo, withPictures } from "./request.js";

const FIELDS = ["prompt", "model", "n", "size"]; // that the openai client names itself

/** The body with its pictures as the names of files, and those names. */
async function named({ body }) {
  const files = new Map();
  const name = (blob) => {
    if (!files.has(blob)) files.set(blob, `picture-${files.size + 1}.${blob.type.split("/")[1] ?? "png"}`);
    return files.get(blob);
  };
  return { body: await withPictures(body, (blob) => new Picture(name(blob))), files: [...files.values()] };
}

class Picture {
  constructor(file) {
    this.file = file;
  }
  toString() {
    return this.file;
  }
}

const shellQuoted = (text) => `'${String(text).replaceAll("'", `'\\''`)}'`;

/** A value as Python writes it; a picture as `written` says. */
function python(value, written) {
  if (value instanceof Picture) return written(value);
  if (Array.isArray(value)) return `[${value.map((one) => python(one, written)).join(", ")}]`;
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one, written)}`).join(", ")}}`;
}

/** A function of Python's that makes a data URL of a file. */
const URL_OF_FILE = `def url(file):
    return "data:image/png;base64," + base64.b64encode(pathlib.Path(file).read_bytes()).decode()
`;

const base = () => new URL(".", location.href).href;

export async function curl(request, keyed) {
  const { body, files } = await named(request);
  const head = [`curl -s ${shellQuoted(base() + request.route)}`];
  if (keyed) head.push(`-H "Authorization: Bearer $TCD_API_KEY"`);
  if (isEdit(request)) {
    const parts = Object.entries(body).map(([name, value]) => {
      if (value instanceof Picture) return `-F ${name}=@${value}`;
      return `-F ${shellQuoted(`${name}=${typeof value === "object" ? json(value) : value}`)}`;
    });
    return [...head, ...parts].join(" \\\n  ");
  }
  head.push("-H 'content-type: application/json'");
  if (!files.length) return [...head, `-d ${shellQuoted(json(body))}`].join(" \\\n  ");
  // base64 of files is too long for an argument: the body comes from Python by a pipe.
  const sender = `import base64, json, pathlib
${URL_OF_FILE}print(json.dumps(${python(body, (picture) => `url("${picture}")`)}))`;
  return [`python3 -c ${shellQuoted(sender)} | ${head.join(" \\\n  ")}`, "-d @-"].join(" \\\n  ");
}

const json = (value) => JSON.stringify(value, (_, one) => (one instanceof Picture ? one.file : one));

export async function openai(request, keyed) {
  const { body, files } = await named(request);
  const url = files.length && !(isEdit(request) && onlyFiles(body)) ? `\n${URL_OF_FILE}\n` : "";
  const key = keyed ? `os.environ["TCD_API_KEY"]` : `"none"`;
  const imports = ["base64", ...(keyed ? ["os"] : []), ...(files.length ? ["pathlib"] : []), ...(isVideo(request) ? ["time"] : [])];
  const head = `import ${imports.join(", ")}

${isVideo(request) ? "import httpx\n" : ""}import openai
${url}
client = openai.OpenAI(base_url="${base()}v1", api_key=${key})
`;
  const text = (value) => python(value, (picture) => `url("${picture}")`);
  if (isVideo(request))
    return `${head}video = client.post("/videos", cast_to=object, body=${text(body)})
while (job := client.get(f"/videos/{video['id']}", cast_to=object))["status"] in ("queued", "in_progress"):
    print(job["progress"], "%")
    time.sleep(1)
answer = client.get(f"/videos/{video['id']}/content", cast_to=httpx.Response)
open("video.mp4", "wb").write(answer.content)
`;
  const given = Object.entries(body).filter(([name]) => FIELDS.includes(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => ![...FIELDS, "image", "mask"].includes(name)));
  const lines = given.map(([name, value]) => `    ${name}=${text(value)},`);
  for (const name of ["image", "mask"])
    if (body[name] instanceof Picture) lines.push(`    ${name}=pathlib.Path("${body[name]}").read_bytes(),`);
  if (Object.keys(extra).length) lines.push(`    extra_body=${text(extra)},`);
  return `${head}answer = client.images.${isEdit(request) ? "edit" : "generate"}(
${lines.join("\n")}
)
open("picture.png", "wb").write(base64.b64decode(answer.data[0].b64_json))
`;
}

const onlyFiles = ({ controls, ip_adapter }) => !controls && !ip_adapter;

const TYPES = { loras: "LoraWeight", motion_loras: "LoraWeight", controls: "Control", ip_adapter: "IpAdapter" };

/** For another Ray application: the handle takes the same names, but the size in two. */
export async function handle(request) {
  const { body } = await named(request);
  const { size, ip_adapter, ...rest } = body;
  const kind = isVideo(request) ? "VideoRequest" : "ImageRequest";
  const used = new Set([kind]);
  const read = (picture) => `pathlib.Path("${picture}").read_bytes()`;
  const made = (name, value) => {
    if (!(name in TYPES)) return python(value, read);
    used.add(TYPES[name]);
    const one = (fields) => `${TYPES[name]}(${Object.entries(fields).map(([field, given]) => `${field}=${tuple(given)}`).join(", ")})`;
    return Array.isArray(value) ? `(${value.map((each) => `${one(each)},`).join(" ")})` : one(value);
  };
  const tuple = (value) => (Array.isArray(value) ? `(${value.map((one) => `${python(one, read)},`).join(" ")})` : python(value, read));
  const fields = { ...rest };
  if (size) [fields.width, fields.height] = size.split("x").map(Number);
  const lines = Object.entries(fields).map(([name, value]) => `    ${name === "input_reference" ? "image" : name}=${made(name, value)},`);
  if (ip_adapter) {
    const { image, ...others } = ip_adapter;
    lines.push(`    ip_adapter=${made("ip_adapter", { images: image, ...others })},`);
  }
  const pictures = lines.some((line) => line.includes("pathlib")) ? "import pathlib\n\n" : "";
  return `${pictures}from ray import serve
from deployments.contracts.jobs import ${[...used].sort().join(", ")}

tcd = serve.get_app_handle("tcd")
result = await tcd.${isVideo(request) ? "animate" : "generate"}.remote(
    ${kind}(
${lines.map((line) => `    ${line}`).join("\n")}
    )
)  # result.${isVideo(request) ? "frames" : "images"}: (height, width, 3) uint8
`;
}
