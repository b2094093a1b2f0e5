/** How long work takes, by how long such work took before. */

const PACES = "tcd-paces"; // by model: seconds per pixel, step and picture

function paces() {
  try {
    return JSON.parse(localStorage.getItem(PACES)) ?? {};
  } catch {
    return {};
  }
}

const place = ({ body, route }) => `${body.model} ${route}`;

function amount({ body }, card) {
  const [width, height] = body.size?.split("x").map(Number) ?? [card.defaults.width, card.defaults.height];
  const steps = body.num_inference_steps ?? card.defaults.num_inference_steps;
  const guided = (body.guidance_scale ?? card.defaults.guidance_scale) > 1 ? 2 : 1;
  return width * height * steps * guided * (body.num_frames ?? body.n ?? 1);
}

/** Takes note of how long a request took. */
export function learn(request, card, seconds) {
  const known = paces();
  const now = seconds / amount(request, card);
  const before = known[place(request)] ?? now;
  try {
    localStorage.setItem(PACES, JSON.stringify({ ...known, [place(request)]: (before + now) / 2 }));
  } catch {
    // The browser keeps nothing, or is full: the next one's time is not known.
  }
}

/** Seconds that a request will take, if such work is known. */
export function expected(request, card) {
  const pace = paces()[place(request)];
  return pace && card ? pace * amount(request, card) : undefined;
}

/** Seconds that are left of a task. */
export function left(task, now) {
  if (!task.begun) return task.expected;
  const spent = (now - task.begun) / 1000;
  const byProgress = task.progress > 5 ? (spent * (100 - task.progress)) / task.progress : undefined;
  const byPace = task.expected && Math.max(0, task.expected - spent);
  return byProgress ?? byPace;
}

export function spelled(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return `${Math.round(seconds / 60)} min`;
}
