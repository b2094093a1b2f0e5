/** Painting a mask over the start picture: what is painted is made anew.
 *
 *  By mouse, pen, finger, or keyboard: arrows move the brush, Space paints. */

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { Slider } from "./fields.js";

const SHOWN = 320; // pixels a side, at least, that a picture is shown with
const UNDOS = 30;
const UNDO_BYTES = 2 ** 27; // of all that can be undone
const CANVAS_PIXELS = 2 ** 22; // that are drawn; more are scaled by the browser

export function MaskEditor({ image, mask, set, film = false }) {
  const canvas = useRef(null);
  const work = useRef(null); // the picture, the mask, and what was before
  const [tool, take] = useState("paint");
  const [size, resize] = useState(15);
  const [feather, soften] = useState(0);
  const [zoom, enlarge] = useState(1);
  const [, redraw] = useState(0);
  const own = useRef(null); // the mask that this editor gave out last
  const turns = useRef(0);

  useEffect(() => {
    let open = true;
    work.current = null;
    Promise.all([createImageBitmap(image), mask ? createImageBitmap(mask) : null]).then(([picture, painted]) => {
      if (!open) return;
      const layer = new OffscreenCanvas(picture.width, picture.height);
      work.current = { picture, layer, before: [], after: [], at: [picture.width / 2, picture.height / 2] };
      own.current = mask;
      if (painted) fromMask(layer, painted);
      draw();
      redraw((count) => count + 1);
    });
    return () => {
      open = false;
      turns.current++; // what is on its way is of this picture
    };
  }, [image]);

  // A mask that came from elsewhere, or was taken away.
  useEffect(() => {
    if (!work.current || mask === own.current) return;
    own.current = mask;
    if (!mask) {
      clear(work.current.layer);
      draw();
    } else
      createImageBitmap(mask).then((painted) => {
        fromMask(work.current.layer, painted);
        draw();
      });
  }, [mask]);

  useEffect(draw, [zoom, size]);

  function draw(pointed = false) {
    if (!work.current || !canvas.current) return;
    const { picture, layer, at } = work.current;
    const natural = shownScale(picture);
    const scale = Math.min(natural * zoom, Math.sqrt(CANVAS_PIXELS / (picture.width * picture.height)));
    const shown = canvas.current;
    shown.style.width = `calc(min(${picture.width * natural}px, 100%) * ${zoom})`;
    shown.width = picture.width * scale;
    shown.height = picture.height * scale;
    const pen = shown.getContext("2d");
    pen.imageSmoothingEnabled = scale < 3;
    pen.drawImage(picture, 0, 0, shown.width, shown.height);
    pen.drawImage(tinted(layer, shown.width, shown.height), 0, 0);
    if (pointed || document.activeElement === shown) {
      pen.beginPath();
      pen.arc(at[0] * scale, at[1] * scale, (radius() * scale) | 0, 0, 7);
      pen.lineWidth = 2;
      pen.strokeStyle = "black";
      pen.stroke();
      pen.setLineDash([4, 4]);
      pen.strokeStyle = "white";
      pen.stroke();
    }
  }

  const radius = () => (Math.max(work.current.picture.width, work.current.picture.height) * size) / 200;

  function remember() {
    const { layer, before } = work.current;
    before.push(pixels(layer));
    while (before.length > 1 && (before.length > UNDOS || before.length * layer.width * layer.height * 4 > UNDO_BYTES)) before.shift();
    work.current.after = [];
  }

  function stroke(from, to) {
    const pen = penOf(work.current.layer);
    pen.globalCompositeOperation = tool === "paint" ? "source-over" : "destination-out";
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = radius() * 2;
    pen.strokeStyle = "white";
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(to[0] + 0.01, to[1]);
    pen.stroke();
    pen.globalCompositeOperation = "source-over";
    work.current.at = to;
    draw(true);
  }

  async function give(softened = feather) {
    const turn = ++turns.current;
    const next = await written(work.current.layer, softened);
    if (turn !== turns.current) return; // it was painted on meanwhile
    own.current = next;
    set(next);
    redraw((count) => count + 1);
  }

  const act = (does) => () => {
    if (!work.current) return;
    remember();
    does(work.current.layer);
    draw();
    give();
  };

  function swap(from, to) {
    const state = work.current;
    if (!state?.[from].length) return;
    state[to].push(pixels(state.layer));
    penOf(state.layer).putImageData(state[from].pop(), 0, 0);
    draw();
    give();
  }
  const undo = () => swap("before", "after");
  const redo = () => swap("after", "before");

  const place = (event) => {
    const { left, top, width } = canvas.current.getBoundingClientRect();
    const scale = work.current.picture.width / width;
    return [(event.clientX - left) * scale, (event.clientY - top) * scale];
  };
  const down = (event) => {
    if (!work.current || event.button) return;
    event.preventDefault();
    canvas.current.focus();
    canvas.current.setPointerCapture(event.pointerId);
    remember();
    work.current.drawing = true;
    stroke(place(event), place(event));
  };
  const move = (event) => {
    if (!work.current) return;
    const to = place(event);
    if (work.current.drawing) stroke(work.current.at, to);
    else {
      work.current.at = to;
      draw(true);
    }
  };
  const up = () => {
    if (!work.current?.drawing) return;
    work.current.drawing = false;
    give();
  };

  const typed = (event) => {
    const state = work.current;
    if (!state) return;
    const step = Math.max(1, radius() / 2);
    const ways = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key in ways) {
      const [x, y] = ways[event.key];
      const to = [clamped(state.at[0] + x, state.picture.width), clamped(state.at[1] + y, state.picture.height)];
      if (event.shiftKey) {
        remember();
        stroke(state.at, to);
        give();
      } else {
        state.at = to;
        draw(true);
      }
    } else if (event.key === " ") {
      remember();
      stroke(state.at, state.at);
      give();
    } else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) (event.shiftKey ? redo : undo)();
    else if (event.key === "[") resize((now) => Math.max(1, now - 2));
    else if (event.key === "]") resize((now) => Math.min(100, now + 2));
    else if (event.key === "e") take((now) => (now === "paint" ? "erase" : "paint"));
    else return;
    event.preventDefault();
  };

  const { before = [], after = [] } = work.current ?? {};
  return html`<div class="mask" role="group" aria-label="Mask">
    <div class="easel"><canvas ref=${canvas} tabindex="0" role="application" aria-busy=${!work.current}
      aria-label="Mask: arrows move the brush, Space paints, Shift and arrows draw, E changes between brush and eraser, [ and ] the size, Ctrl+Z undoes"
      onPointerDown=${down} onPointerMove=${move} onPointerUp=${up} onPointerCancel=${up} onPointerLeave=${() => draw()} onKeyDown=${typed}
      onFocus=${() => draw()} onBlur=${() => draw()}></canvas></div>
    <div class="tools" role="toolbar" aria-label="Mask tools">
      <button type="button" aria-pressed=${tool === "paint"} onClick=${() => take("paint")}>Brush</button>
      <button type="button" aria-pressed=${tool === "erase"} onClick=${() => take("erase")}>Eraser</button>
      <button type="button" disabled=${!before.length} onClick=${undo}>Undo</button>
      <button type="button" disabled=${!after.length} onClick=${redo}>Redo</button>
      <button type="button" onClick=${act(fill)}>Fill</button>
      <button type="button" onClick=${act(invert)}>Invert</button>
      <button type="button" disabled=${!mask} onClick=${act(clear)}>Clear</button>
    </div>
    <${Slider} label="Brush size" value=${size} min=${1} max=${100} step=${1} set=${resize} />
    <${Slider} label="Feather" value=${feather} min=${0} max=${32} step=${1} set=${(value) => (soften(value), mask && give(value))} />
    <${Slider} label="Zoom" value=${zoom} min=${1} max=${8} step=${0.5} set=${enlarge} />
    <small>${film ? "A video has no mask." : mask ? "What is painted is made anew; the rest stays as it is." : "Paint what is to be made anew; with nothing painted, the whole picture changes."}</small>
  </div>`;
}

const clamped = (value, most) => Math.min(most, Math.max(0, value));

/** Small pictures are shown larger, by whole numbers; large ones as they are (the page shrinks them). */
function shownScale({ width, height }) {
  return Math.max(1, Math.floor(SHOWN / Math.max(width, height)));
}

/** Of a mask, which is read as often as it is drawn on. */
function penOf(layer) {
  return layer.getContext("2d", { willReadFrequently: true });
}

function pixels(layer) {
  return penOf(layer).getImageData(0, 0, layer.width, layer.height);
}

function fill(layer) {
  const pen = penOf(layer);
  pen.fillStyle = "white";
  pen.fillRect(0, 0, layer.width, layer.height);
}

function clear(layer) {
  penOf(layer).clearRect(0, 0, layer.width, layer.height);
}

function invert(layer) {
  const pen = penOf(layer);
  pen.globalCompositeOperation = "source-out";
  fill(layer);
  pen.globalCompositeOperation = "source-over";
}

/** A mask as the service reads it, white on black, taken into the layer. */
function fromMask(layer, painted) {
  const pen = penOf(layer);
  pen.drawImage(painted, 0, 0, layer.width, layer.height);
  const all = pixels(layer);
  for (let at = 0; at < all.data.length; at += 4) {
    all.data[at + 3] = all.data[at];
    all.data.fill(255, at, at + 3);
  }
  pen.putImageData(all, 0, 0);
}

/** White on black, its edges softened over some pixels; null if nothing is painted. */
async function written(layer, feather) {
  const painted = pixels(layer).data.some((value, at) => at % 4 === 3 && value > 127);
  if (!painted) return null;
  const page = new OffscreenCanvas(layer.width, layer.height);
  const pen = page.getContext("2d");
  pen.fillStyle = "black";
  pen.fillRect(0, 0, page.width, page.height);
  if (feather) pen.filter = `blur(${feather / 2}px)`;
  pen.drawImage(layer, 0, 0);
  return page.convertToBlob({ type: "image/png" });
}

/** What is painted, in a colour and with stripes, so that it is seen on any picture. */
function tinted(layer, width, height) {
  const shown = new OffscreenCanvas(width, height);
  const pen = shown.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(layer, 0, 0, width, height);
  pen.globalCompositeOperation = "source-in";
  const tile = new OffscreenCanvas(12, 12);
  const stripes = tile.getContext("2d");
  stripes.fillStyle = "rgb(225 0 120 / 60%)";
  stripes.fillRect(0, 0, 12, 12);
  stripes.strokeStyle = "rgb(255 255 255 / 70%)";
  stripes.lineWidth = 2;
  stripes.beginPath();
  for (const x of [-12, 0, 12]) {
    stripes.moveTo(x, 12);
    stripes.lineTo(x + 12, 0);
  }
  stripes.stroke();
  pen.fillStyle = pen.createPattern(tile, "repeat");
  pen.fillRect(0, 0, width, height);
  return shown;
}
