"use strict";
// Everything that comes from a run is set as text or as an attribute, never as markup.

const at = (id) => document.getElementById(id);
const state = { groups: [], likes: {}, pairs: {}, samples: [], view: "grid", now: 0, duels: [], skipped: new Set() };
const figures = new Map();
let queue = Promise.resolve();

const address = (sample, full) => `images/${encodeURIComponent(sample)}${full ? "?full" : ""}`;
const pairKey = (a, b) => [a, b].sort().join("/");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function picture(image, sample, full, alt) {
  image.alt = alt;
  image.onload = () => image.classList.toggle("tiny", Math.max(image.naturalWidth, image.naturalHeight) <= 128);
  image.onerror = () => warn(`The image ${sample} cannot be shown.`);
  image.src = address(sample, full);
}

function warn(text) {
  at("alert").textContent = text;
}

function tell(text) {
  at("status").textContent = text;
}

// One request after the other; a lost answer is asked for again with the same key, so no vote counts twice.
function send(said) {
  const key = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join("");
  const body = JSON.stringify({ ...said, key });
  queue = queue.then(async () => {
    for (let attempt = 0; ; attempt++) {
      try {
        const answer = await fetch("votes", { method: "POST", headers: { "Content-Type": "application/json" }, body });
        const content = await answer.json();
        if (!answer.ok) throw Object.assign(new Error(content.error), { told: true });
        warn("");
        take(content, said);
        return;
      } catch (error) {
        if (error.told || attempt >= 3) return warn(`Not stored: ${error.message}`);
        await new Promise((wake) => setTimeout(wake, 400 * 2 ** attempt));
      }
    }
  });
}

function take(content, said) {
  const before = { ...state.likes };
  state.likes = content.likes;
  state.pairs = content.pairs;
  for (const sample of new Set([...Object.keys(before), ...Object.keys(state.likes)])) {
    if (before[sample] !== state.likes[sample]) paint(sample);
  }
  if (said.kind === "undo") {
    tell(content.sample === null ? "There is nothing to take back." : "The last vote is taken back.");
    if (content.other !== null) show("compare");
    else if (content.sample !== null) show("grid"), focus(state.samples.indexOf(content.sample));
  }
  progress();
  if (state.view === "compare") duel();
}

function progress() {
  const liked = Object.keys(state.likes).length;
  const compared = state.duels.filter(({ a, b }) => pairKey(a, b) in state.pairs).length;
  at("progress").textContent = `${liked} of ${state.samples.length} images, ${compared} of ${state.duels.length} pairs`;
}

function paint(sample) {
  const { figure, number, count } = figures.get(sample);
  const verdict = state.likes[sample];
  figure.classList.toggle("liked", verdict === true);
  figure.classList.toggle("disliked", verdict === false);
  figure.querySelector(".like").setAttribute("aria-pressed", verdict === true);
  figure.querySelector(".dislike").setAttribute("aria-pressed", verdict === false);
  const word = verdict === undefined ? "not judged" : verdict ? "liked" : "disliked";
  figure.setAttribute("aria-label", `Image ${number} of ${count}, ${word}`);
}

function build(group, place) {
  const images = element("div", { className: "images" });
  group.samples.forEach((sample, index) => {
    const image = element("img", { loading: "lazy", decoding: "async", width: 256, height: 256 });
    const like = element("button", { type: "button", className: "like", tabIndex: -1 }, "+ like");
    const dislike = element("button", { type: "button", className: "dislike", tabIndex: -1 }, "− dislike");
    const figure = element("figure", { tabIndex: -1 }, image, element("figcaption", {}, like, dislike));
    figure.setAttribute("role", "group");
    figure.dataset.sample = sample;
    picture(image, sample, false, `Image ${index + 1} of ${group.samples.length} for: ${group.prompt}`);
    like.onclick = () => judge(sample, true);
    dislike.onclick = () => judge(sample, false);
    image.onclick = () => enlarge(sample);
    figure.onfocus = () => focus(state.samples.indexOf(sample), false);
    figures.set(sample, { figure, number: index + 1, count: group.samples.length, group: place });
    images.append(figure);
  });
  const title = element("h2", { id: `group-${place}` }, `${place + 1}. ${group.prompt}`);
  const section = element("section", { className: "group" }, title, images);
  section.setAttribute("aria-labelledby", title.id);
  return section;
}

function judge(sample, verdict) {
  send({ kind: "like", sample, verdict });
  const { number, count, group } = figures.get(sample);
  tell(`${verdict ? "Liked" : "Disliked"} image ${number} of ${count} in group ${group + 1}.`);
}

function focus(index, move = true) {
  if (index < 0 || index >= state.samples.length) return;
  for (const place of new Set([state.now, index])) {
    const { figure } = figures.get(state.samples[place]);
    const stop = place === index ? 0 : -1;
    figure.tabIndex = stop;
    for (const button of figure.querySelectorAll("button")) button.tabIndex = stop;
  }
  state.now = index;
  if (move) figures.get(state.samples[index]).figure.focus();
}

function columns() {
  const { figure } = figures.get(state.samples[state.now]);
  return getComputedStyle(figure.parentElement).gridTemplateColumns.split(" ").length;
}

function turn(step) {
  const place = figures.get(state.samples[state.now]).group + step;
  if (place >= 0 && place < state.groups.length) focus(state.samples.indexOf(state.groups[place].samples[0]));
}

function enlarge(sample) {
  const { number, count } = figures.get(sample);
  picture(at("full").querySelector("img"), sample, true, `Image ${number} of ${count}, full size`);
  at("full").showModal();
}

function show(view) {
  state.view = view;
  at("grid").setAttribute("aria-pressed", view === "grid");
  at("compare").setAttribute("aria-pressed", view === "compare");
  at("groups").hidden = view !== "grid";
  at("duel").hidden = at("done").hidden = true;
  if (view === "compare") duel();
  else focus(state.now);
}

const open = () => state.duels.find(({ a, b }) => !(pairKey(a, b) in state.pairs) && !state.skipped.has(pairKey(a, b)));

function duel() {
  const pair = open();
  at("duel").hidden = !pair;
  at("done").hidden = Boolean(pair);
  if (!at("duel").contains(document.activeElement) || !pair) at(pair ? "question" : "done").focus();
  if (!pair) return;
  at("question").textContent = `Which is better for: ${pair.prompt}`;
  at("duel").dataset.pair = pairKey(pair.a, pair.b);
  picture(at("left").querySelector("img"), pair.a, true, "Left image");
  picture(at("right").querySelector("img"), pair.b, true, "Right image");
}

function choose(left) {
  const pair = open();
  if (!pair || state.waiting === pair) return;
  state.waiting = pair;
  const [sample, other] = left ? [pair.a, pair.b] : [pair.b, pair.a];
  send({ kind: "pair", sample, other });
  tell(`The ${left ? "left" : "right"} one.`);
  queue = queue.then(() => { state.waiting = null; });
}

function skip() {
  if (state.view === "grid") return focus(state.now + 1);
  const pair = open();
  if (pair) state.skipped.add(pairKey(pair.a, pair.b));
  duel();
}

function help() {
  const hidden = at("keys").toggleAttribute("hidden");
  at("help").setAttribute("aria-expanded", !hidden);
}

const common = { g: () => show("grid"), c: () => show("compare"), u: () => send({ kind: "undo" }), s: skip, "?": help };
const keys = {
  grid: {
    ArrowRight: () => focus(state.now + 1),
    ArrowLeft: () => focus(state.now - 1),
    ArrowDown: () => focus(Math.min(state.now + columns(), state.samples.length - 1)),
    ArrowUp: () => focus(Math.max(state.now - columns(), 0)),
    l: () => (judge(state.samples[state.now], true), focus(state.now + 1)),
    d: () => (judge(state.samples[state.now], false), focus(state.now + 1)),
    n: () => turn(1),
    p: () => turn(-1),
    Enter: () => enlarge(state.samples[state.now]),
  },
  compare: { ArrowLeft: () => choose(true), ArrowRight: () => choose(false) },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at("full").open || !state.samples.length) return;
  if (event.key === "Enter" && event.target.closest("button")) return;
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = keys[state.view][name] || common[name];
  if (!action) return;
  event.preventDefault();
  action();
});

async function begin() {
  const answer = await fetch("groups.json");
  const content = await answer.json();
  if (!answer.ok) return warn(content.error);
  Object.assign(state, { groups: content.groups, likes: content.likes, pairs: content.pairs });
  state.samples = content.groups.flatMap((group) => group.samples);
  state.duels = content.groups.flatMap(({ prompt, pairs }) => pairs.map(([a, b]) => ({ a, b, prompt })));
  at("about").textContent = `${content.root}, iteration ${content.iteration}; you are ${content.rater}`;
  at("groups").append(...content.groups.map(build));
  state.samples.forEach(paint);
  for (const [id, action] of [["grid", common.g], ["compare", common.c], ["undo", common.u], ["help", help], ["skip", skip]]) {
    at(id).onclick = action;
  }
  at("left").onclick = () => choose(true);
  at("right").onclick = () => choose(false);
  progress();
  const first = state.samples.findIndex((sample) => !(sample in state.likes));
  focus(Math.max(first, 0));
  tell(content.ballots ? "You go on where you stopped." : "Judge as many as you like: nobody has to judge all.");
  document.body.dataset.ready = "true";
}

begin().catch((error) => warn(`The page cannot begin: ${error.message}`));
