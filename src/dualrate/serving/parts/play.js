"use strict";
const at = (id) => document.getElementById(id);
const model = JSON.parse(at("model").textContent);
const NUMBERS = ["steps", "heavy", "guidance", "seed", "images", "members", "start"];
const CHOICES = ["sampler", "label", "beside", "prompt"], FIELDS = [...NUMBERS, ...CHOICES];
const DEFAULTS = { guidance: "1", seed: "0", sampler: "", label: "", prompt: "", start: "", beside: model.beside[0] };
let job = null, heavyChosen = false, asked = 0, timer = 0;

// Elements

function made(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function drawn(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Numbers for people

function macs(count) {
  const units = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const [unit, name] = units.find(([least]) => count >= least) ?? units.at(-1);
  return `${(count / unit).toPrecision(3)} ${name}`;
}

function time(seconds) {
  return seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toPrecision(3)} s`;
}

const [NOUN, AN] = model.takes === "start" ? ["forecast", "a forecast"] : ["image", "an image"];
const times = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const percent = (part, whole) => `${Math.round(100 * part / whole)}%`;

const named = (label) => model.class_names[label] ?? `class ${label}`;
const meant = (label) => {  // a number may be another class's name: a name of its own is clear
  const name = model.class_names[label];
  return model.class_names.filter((one) => one === name).length === 1 ? name : Number(label);
};

// Controls, as far as the model leaves a choice

function offer() {
  const { classes, limits, shape, parameters, macs: cost } = model;
  const count = Object.values(parameters).reduce((a, b) => a + b, 0);
  at("facts").textContent =
    `${shape[1]} x ${shape[2]} pixels, ${(count / 1e6).toPrecision(3)} M parameters. ` +
    (cost.heavy ? `A heavy call: ${macs(cost.heavy)}MACs, a light one: ${macs(cost.light)}MACs.`
      : `A call: ${macs(cost.light)}MACs.`) +
    ` Weights ${model.weights}, on ${model.device}.`;
  bounds("steps", ...model.steps);
  at("steps").value = model.default.steps;
  bounds("images", 1, limits.images);
  at("images").value = DEFAULTS.images = String(model.default.images);
  bounds("members", 1, model.members);
  at("members").value = DEFAULTS.members = String(model.default.members);
  at("heavy").disabled = model.least_heavy === null;
  options("sampler", [["", "recommended"]]);
  const groups = [[true, "with as many heavy calls as chosen"], [false, "with a heavy call at every step only"]];
  for (const [reuses, label] of groups) {
    const names = Object.keys(model.samplers).filter((name) => model.samplers[name] === reuses);
    if (names.length) at("sampler").append(made("optgroup", { label }, ...names.map((name) => option(name, name))));
  }
  options("label", [["", "all in turn"], ...Array.from({ length: classes }, (_, i) => [String(i), named(i)])]);
  const baseline = model.baseline ?? "every heavy call it can make";
  const names = { steps: `as many steps: ${baseline}`, cost: `as many MACs: ${baseline}`, nothing: "nothing" };
  options("beside", model.beside.map((name) => [name, names[name]]));
  const needless = { guidance: !classes, label: classes < 2, members: model.members < 2, beside: model.beside.length < 2,
    prompt: model.takes !== "prompt", start: model.takes !== "start" };
  for (const id in needless) at(id).closest(".field").classList.toggle("none", needless[id]);
  if (model.takes === "start") document.querySelector("label[for=images]").textContent = "Starts";
  for (const id of ["steps", "heavy", "guidance", "images"]) slider(at(id));
  follow();
}

const option = (value, text) => made("option", { value }, text);
const options = (id, pairs) => at(id).append(...pairs.map(([value, text]) => option(value, text)));

function bounds(id, low, high) {
  Object.assign(at(id), { min: low, max: high, step: 1, disabled: low === high });
}

// A slider beside a number, for a pointer: keys and readers have the number itself
function slider(number) {
  const range = made("input", { type: "range", tabindex: "-1", "aria-hidden": "true" });
  const copy = () => {
    const { min, max, step, disabled, value } = number;
    Object.assign(range, { min, max, step: step || 1, disabled }, { value });  // which its ends would cut
  };
  number.before(range);
  range.addEventListener("input", (event) => {
    event.stopPropagation();
    number.value = range.value;
    number.dispatchEvent(new Event("input", { bubbles: true }));
  });
  number.addEventListener("input", copy);
  number.addEventListener("follow", copy);
  copy();
}

// Heavy calls go along with the steps until they are chosen, and never beyond them
function follow() {
  const steps = Number(at("steps").value), heavy = at("heavy");
  heavy.min = model.least_heavy ?? 0;
  heavy.max = steps || 1;
  if (!heavyChosen || heavy.disabled) {
    heavy.value = model.macs.heavy ? model.usual_heavy[steps] ?? "" : "";
  } else if (Number(heavy.value) > steps && steps >= 1) heavy.value = steps;
  for (const id of NUMBERS) at(id).dispatchEvent(new Event("follow"));
}

// What is asked for: fields that are empty are left to the server

function request() {
  const found = {};
  for (const id of NUMBERS) if (at(id).value.trim() !== "") found[id] = Number(at(id).value);
  for (const id of CHOICES) if (at(id).value !== "") found[id] = id === "label" ? meant(at(id).value) : at(id).value;
  if (!heavyChosen) delete found.heavy;
  return found;
}

// Settings stand in the address, so that it can be kept and passed on

function remember() {
  const kept = new URLSearchParams();
  const chosen = (id) => at(id).value !== DEFAULTS[id] && (id !== "heavy" || heavyChosen);
  for (const id of FIELDS.filter(chosen)) kept.set(id, at(id).value);
  history.replaceState(null, "", `#${kept}`);
}

function recall() {
  const kept = new URLSearchParams(location.hash.slice(1)), named = FIELDS.filter((id) => kept.has(id));
  heavyChosen = kept.has("heavy");
  for (const id of FIELDS) if (kept.has(id) || id in DEFAULTS) at(id).value = kept.get(id) ?? DEFAULTS[id];
  follow();
  return named.length > 0;
}

// The server

const GONE = "The server does not answer: it was stopped, or cannot be reached. Start it again, then draw.";

async function post(path, body, accept, signal) {
  const headers = { "Content-Type": "application/json", Accept: accept };
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal })
    .catch((error) => { throw signal?.aborted ? error : new Error(GONE); });
  if (answer.ok) return answer;
  const refusal = await answer.json();
  throw Object.assign(new Error(refusal.message), { field: refusal.field });
}

// Reports of a sampling as they come; who leaves ends it
async function* reports(body, signal) {
  const answer = await post("api/samples", body, "text/event-stream", signal);
  let text = "", last = null;
  try {
    for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {
      const events = (text + part).split("\n\n");
      text = events.pop();
      for (const event of events) yield last = JSON.parse(event.slice("data: ".length));
    }
  } catch (error) {
    throw signal.aborted ? error : new Error(GONE);
  }
  if (!last || ["waiting", "running"].includes(last.status)) throw new Error(GONE);
}

function tell(error) {
  for (const id of FIELDS) at(id).removeAttribute("aria-invalid");
  at("error").hidden = !error;
  at("error").textContent = error ? error.message : "";
  if (error?.field) {
    at(error.field).setAttribute("aria-invalid", "true");
    at(error.field).setAttribute("aria-describedby", "error");
  }
}

const say = (text) => { if (at("status").textContent !== text) at("status").textContent = text; };

// Sides: plans, counts, pictures

function build(sides, titles = []) {
  at("sides").classList.toggle("alone", sides.length === 1);
  const drawn = titles.length ? sides.map((side) => pictures(side, titles)) : [];
  at("sides").replaceChildren(...sides.map(planOf), ...drawn);
}

// In words: how many steps, and how many of them are heavy, where its model makes heavy calls
function counts(side) {
  const steps = times(side.steps, "step");
  if (side.heavy === null) return steps;
  return side.heavy === side.steps ? `${steps}, all heavy` : `${steps}, ${side.heavy} heavy`;
}

function planOf(side) {
  return made("div", { class: "plan" },
    made("h2", {}, side.name),
    made("p", { class: "note" }, `${counts(side)}; ${side.sampler}${side.note && `; ${side.note}`}`),
    plan(side),
    made("div", { class: "ends", "aria-hidden": "true" }, made("span", {}, "noise"), made("span", {}, "data")),
    made("dl", { class: "counts" },
      made("dt", {}, `MACs ${AN}`), made("dd", { class: "macs" }, macs(side.macs)),
      made("dt", {}, `time ${AN}`), made("dd", { class: "each" }, "-"),
      made("dt", {}, "time of all"), made("dd", { class: "all" }, "-")));
}

function plan(side) {
  const x = (t) => 8 + 584 * (1 - t), radius = Math.max(2.5, Math.min(7, 260 / side.steps));
  const full = (what) => side.heavy !== null && what === "full";
  const heavy = side.refresh.flatMap((what, i) => full(what) ? [i + 1] : []);
  const where = heavy.length && heavy.length < side.steps ? `: the steps ${heavy.join(", ")}` : "";
  const svg = drawn("svg", { viewBox: "0 0 600 26", role: "img" },
    drawn("title", {}, `${counts(side)}${where}`),
    drawn("line", { class: "axis", x1: 0, x2: 600, y1: 13, y2: 13 }));
  side.refresh.forEach((what, i) => {
    const cx = x(side.t[i]).toFixed(1), [kind, high] = what === "none" ? ["step alone", 4] : ["step", 8];
    svg.append(full(what) ? drawn("circle", { class: "mark heavy", cx, cy: 13, r: radius })
      : drawn("line", { class: `mark ${kind}`, x1: cx, x2: cx, y1: 13 - high, y2: 13 + high }));
  });
  return svg;
}

function pictures(side, titles) {
  const columns = titles.length === 1 ? 1 : titles.length <= 4 ? 2 : 4, [height, width] = model.picture;
  const parts = titles.map((title) => title.split(", "));  // "start 0, member 1"
  const several = new Set(parts.map(([start]) => start)).size > 1;
  const caption = (part) => model.takes === "start" ? [made("small", {}, part.slice(several ? 0 : 1).join(", "))] : [];
  const list = made("ul", { class: "grid" }, ...parts.map((part) => made("li", {}, ...caption(part))));
  list.style.setProperty("--columns", columns);
  list.style.setProperty("--shape", `${width} / ${height}`);
  return made("div", { class: "pictures", role: "group", "aria-label": `${model.takes === "start" ? "Forecasts" : "Images"} of ${side.name}` },
    made("h3", {}, counts(side)), list);
}

function show(report) {
  const plans = at("sides").querySelectorAll(".plan"), lists = at("sides").querySelectorAll(".grid");
  report.sides.forEach((side, i) => {
    const write = (place, text) => { plans[i].querySelector(place).textContent = side.done ? text : "-"; };
    plans[i].querySelectorAll(".mark").forEach((mark, k) => mark.classList.toggle("ahead", k >= side.done));
    write(".macs", macs(side.macs_so_far));
    write(".each", time(side.seconds / report.seeds.length));
    write(".all", time(side.seconds));
    side.images.forEach((source, k) => {
      const item = lists[i].children[k], title = report.titles[k];
      if (!item.querySelector("img")) item.prepend(made("img", { width: model.picture[1], height: model.picture[0] }));
      const alt = side.finished ? title : `${title}, being drawn`;
      Object.assign(item.firstChild, { src: source, title, alt });
    });
  });
}

function progress(report) {
  const whole = report.sides.reduce((sum, side) => sum + side.macs, 0), bar = at("progress");
  bar.hidden = !["waiting", "running"].includes(report.status);
  bar.value = report.sides.reduce((sum, side) => sum + side.macs_so_far, 0) / whole;
}

// The error of a forecast of its first variable, in its units: the mean over starts, at three frames whose truth is known
function crps(side) {
  const starts = side.crps ?? [], last = (starts[0] ?? []).length - 1;
  if (last < 0) return "";
  const frames = [...new Set([0, last >> 1, last])];
  const mean = (k) => starts.reduce((sum, start) => sum + (start[k][0] ?? NaN), 0) / starts.length;
  const leads = frames.map((k) => Number(side.lead_times[k].toPrecision(4))).join(", ");
  return ` CRPS of ${side.variables[0]} at lead ${leads}: ${frames.map((k) => mean(k).toPrecision(3)).join(", ")}.`;
}

function summary(report) {
  const errors = report.sides.map(crps);
  return costs(report) + errors[0] + (errors[1] ? ` Beside it:${errors[1]}` : "");
}

function costs(report) {
  const [own, baseline] = report.sides;
  if (!baseline) return `Drawn: ${times(report.seeds.length, NOUN)} in ${time(own.seconds)}.`;
  const [work, spent] = [percent(own.macs, baseline.macs), percent(own.seconds, baseline.seconds)];
  return `${work} of the MACs and ${spent} of the time of ${baseline.name}.`;
}

function state(report) {
  const active = report.sides.findIndex((side) => side.done !== null && !side.finished);
  switch (report.status) {
    case "waiting": return report.ahead ? `Waiting: ${times(report.ahead, "request")} before this one.` : "Starting.";
    case "running": return `Drawing ${report.sides[Math.max(0, active)].name}.`;
    case "done": return summary(report);
    case "failed": case "late": return "This could not be drawn.";
    default: return "Stopped.";
  }
}

// A sampling, from the plea to its end

async function preview() {
  const mine = ++asked;
  try {
    const { sides } = await (await post("api/plan", request(), "application/json")).json();
    if (mine !== asked || job) return;
    tell(null);
    build(sides);
    const [own, baseline] = sides;
    say(baseline ? `This takes ${percent(own.macs, baseline.macs)} of the MACs of ${baseline.name}.` : "Ready to draw.");
  } catch (error) {
    if (mine === asked) tell(error);
  }
}

async function draw() {
  asked++;
  tell(null);
  busy(true);
  remember();
  let begun = false;
  job = new AbortController();
  try {
    for await (const report of reports({ ...request(), previews: true }, job.signal)) {
      if (!begun) build(report.sides, report.titles);
      begun = true;
      show(report);
      progress(report);
      say(state(report));
      if (report.error) tell({ message: report.error });
    }
  } catch (error) {
    if (!job.signal.aborted) tell(error);
    say(job.signal.aborted ? "Stopped." : "Nothing was drawn.");
  }
  job = null;
  at("progress").hidden = true;
  busy(false);
}

function busy(now) {
  at("draw").disabled = at("next").disabled = now;
  at("stop").disabled = !now;
  at("sides").setAttribute("aria-busy", String(now));
}

at("ask").addEventListener("submit", (event) => { event.preventDefault(); if (!job) draw(); });
at("ask").addEventListener("input", (event) => {
  if (event.target.id === "heavy") heavyChosen = event.target.value !== "";
  follow();
  clearTimeout(timer);
  timer = setTimeout(() => { if (!job) preview(); }, 150);
});
at("next").addEventListener("click", () => {
  at("seed").value = Number(at("seed").value) + (Number(at("images").value) || model.default.images);
  draw();
});
at("stop").addEventListener("click", () => job?.abort());
window.addEventListener("hashchange", () => { if (recall() && !job) draw(); });

offer();
DEFAULTS.steps = String(model.default.steps);
recall();
draw();
