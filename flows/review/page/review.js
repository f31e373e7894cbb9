"use strict";
// Keys: g good, d defect, n neither, s skip, u undo, 1 to 6 the queues. A label is on the server's disk before the next image shows.
const $ = (id) => document.getElementById(id);
const page = document.body.dataset.page, dataset = document.body.dataset.dataset;
const EMPTY = {
  held: ["Nothing is held back", "New images that the champion scores too high wait here: ", `python -m flows retrain --dataset ${dataset}`],
  near: ["No scored image is left", "Images nearest the threshold come from what was scored: ", `python -m flows score pvqae-${dataset}-CLASS@champion FOLDER`],
  alarms: ["No alarm is left", "Alarms come from the evaluation's test images and from what was scored: ", `python -m flows score pvqae-${dataset}-CLASS@champion FOLDER`],
  gate: ["Nothing is odd in the gate", "Normals of the gate that the champion scores far too high wait here.", ""],
  skipped: ["Nothing was skipped", "", ""],
  labelled: ["Nothing was labelled yet", "What was labelled waits here, should it have to be said again.", ""],
};
let state = null, queue = null, first = "", busy = false;

const who = $("who");
who.value = localStorage.getItem("who") || who.value;
who.addEventListener("change", () => localStorage.setItem("who", who.value));

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

async function ask(path, body) {
  const how = body ? { method: "POST", headers: { "Content-Type": "application/json", "X-Page": page }, body: JSON.stringify(body) } : {};
  let answer;
  try {
    answer = await fetch(path, how);
  } catch {
    throw new Error("The server does not answer: start `python -m flows review` again. All labels are kept.");
  }
  const text = await answer.text();
  if (answer.ok) return JSON.parse(text);
  let reason = text;
  try { reason = JSON.parse(text).error || text; } catch { /* plain text */ }
  throw new Error(reason);
}

const items = (name) => state.queues.find((one) => one.name === name).items;
function current() {
  const list = items(queue);
  return list.find((item) => item.id === first) || list[0];
}

function node(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function choose(name) {
  queue = name;
  first = "";
  show();
}

function showQueues() {
  const focused = document.activeElement && document.activeElement.dataset.queue;
  $("queues").replaceChildren(...state.queues.filter((one) => one.name !== "skipped" || one.items.length || queue === "skipped").map((one) => {
    const button = node("button", one.title);
    button.append(node("b", one.items.length));
    button.dataset.queue = one.name;
    button.setAttribute("aria-pressed", one.name === queue);
    button.addEventListener("click", () => choose(one.name));
    return button;
  }));
  if (focused) $("queues").querySelector(`[data-queue=${focused}]`)?.focus();
}

function showPicture(item) {
  for (const [id, path] of [["picture", "picture"], ["heatmap", "heatmap"]]) {
    const image = $(id);
    image.classList.remove("none");
    const source = `/${path}/${item.id}`;
    if (image.getAttribute("src") === source) continue;
    image.onerror = () => {
      image.classList.add("none");
      if (id === "heatmap") $("mapnote").textContent = "no heatmap: the class has no champion, or the image is gone";
      else complain("This image is gone or changed since it was listed: skip it, or load the page again.");
    };
    image.src = source;
  }
  $("picture").alt = `image ${item.name}`;
  $("heatmap").alt = `heatmap of ${item.name}`;
  $("mapnote").textContent = "the champion's heatmap: bright is far from normal";
}

function showFacts(item) {
  const number = (value) => value === null ? "not known" : value.toPrecision(4);
  const facts = [["class", item.category], ["score", number(item.score)]];
  if (item.threshold !== null) facts.push(["threshold", number(item.threshold)]);
  if (item.version) facts.push(["model version", item.version]);
  facts.push(["from", { held: "the retraining screen", scored: "batch scoring", test: "the test split", gate: "the gate, arrived", source: "the gate, with the dataset", labelled: "the dataset" }[item.origin]]);
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [node("dt", name), node("dd", value)]));
  $("name").textContent = item.name;
  $("name").title = item.path;
  $("reason").textContent = item.reason;
  $("good").querySelector("small").textContent = item.good;
  $("defect").querySelector("small").textContent = item.defect;
  $("neither").querySelector("small").textContent = item.neither;
  $("skip").disabled = queue === "labelled";
  const gauge = item.score !== null && item.threshold !== null && item.threshold > 0;
  $("gauge").hidden = !gauge;
  if (gauge) $("mark").style.left = `${Math.min(98, Math.max(2, 50 * item.score / item.threshold))}%`;
}

function showEmpty() {
  const [title, text, command] = EMPTY[queue];
  const line = node("p", text);
  if (command) line.append(node("code", command));
  $("empty").replaceChildren(node("h2", title), line);
}

function show() {
  const item = current(), list = items(queue), { good, defect, neither } = state.pending;
  showQueues();
  $("bar").max = Math.max(1, state.total);
  $("bar").value = state.done;
  const left = state.total - state.done, listed = state.queues.reduce((sum, one) => sum + (one.name === "labelled" ? 0 : one.items.length), 0);
  $("left").textContent = `${list.length} left here, ${left} images in all queues${listed > left ? `, ${listed - left} of them in two` : ""}`;
  $("card").hidden = !item;
  $("empty").hidden = Boolean(item);
  if (item) {
    showPicture(item);
    showFacts(item);
    const next = list.find((other) => other.id !== item.id);
    if (next) for (const path of ["picture", "heatmap"]) new Image().src = `/${path}/${next.id}`;
  } else showEmpty();
  const many = `${good} good, ${defect} defect${neither ? `, ${neither} neither` : ""}`;
  $("pending").textContent = good + defect + neither ? `${many} not applied yet` : "no labels wait";
  $("apply").disabled = busy || !(good + defect + neither);
}

async function act(path, body) {
  if (busy) return null;
  if (!who.value.trim()) {
    complain("Write your name first: every label is kept with who gave it.");
    who.focus();
    return null;
  }
  busy = true;
  try {
    const answer = await ask(path, { who: who.value, ...body });
    state = answer;
    complain("");
    return answer;
  } catch (error) {
    complain(error.message);
    return null;
  } finally {
    busy = false;
    show();
  }
}

function label(word) {
  const item = current();
  if (!item) return;
  $("said").hidden = true;
  const where = items(queue).findIndex((other) => other.id === item.id);
  act("/label", { id: item.id, label: word }).then((done) => {
    // Where an image stays in its queue, the next one is shown.
    if (done && ((queue === "skipped" && word === "skip") || queue === "labelled")) first = (items(queue)[where + 1] || items(queue)[0] || {}).id || "";
    if (done) show();
  });
}

async function undo() {
  const answer = await act("/undo", {});
  if (!answer) return;
  if (!answer.undone) {
    complain("There is no label of yours to undo: what was applied stays.");
    return;
  }
  if (!items(queue).some((item) => item.id === answer.undone))
    queue = state.queues.find((one) => one.items.some((item) => item.id === answer.undone))?.name || queue;
  first = answer.undone;
  show();
}

function askApply() {
  const { good, defect, neither } = state.pending;
  if (busy || !(good + defect + neither)) return;
  $("what").textContent = `Apply ${good} good, ${defect} defect and ${neither} neither?`;
  $("sure").showModal();
}

async function apply() {
  $("sure").close();
  $("pending").textContent = "applying: DVC makes a version…";
  $("apply").disabled = true;
  const answer = await act("/apply", {});
  if (!answer) return;
  $("said").replaceChildren(...answer.lines.map((line) => node("p", line)));
  $("said").hidden = false;
}

for (const word of ["good", "defect", "neither", "skip"]) $(word).addEventListener("click", () => label(word));
$("undo").addEventListener("click", undo);
$("apply").addEventListener("click", askApply);
$("yes").addEventListener("click", apply);
$("no").addEventListener("click", () => $("sure").close());
document.addEventListener("keydown", (event) => {
  // A held key must not label a whole queue.
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input") || $("sure").open || !state) return;
  const does = { g: () => label("good"), d: () => label("defect"), n: () => label("neither"), s: () => label("skip"), u: undo }[event.key.toLowerCase()];
  const tab = state.queues[Number(event.key) - 1];
  if (does) does();
  else if (tab) choose(tab.name);
});

ask("/state").then((found) => {
  state = found;
  queue = (state.queues.find((one) => one.items.length && !["skipped", "labelled"].includes(one.name)) || state.queues[0]).name;
  show();
}, (error) => complain(error.message));
