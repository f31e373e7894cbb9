// Without scripts the page shows the calibrated threshold and all pictures; these only add to it.
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// The threshold that moves: by the slider, by keys on it, by a finger or mouse in the chart.
for (const figure of all("[data-histogram]")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const [input, button, output, line] = ["input", "button", "output", ".cut"].map((name) => figure.querySelector(name));
  const svg = figure.querySelector("svg");
  const start = Number(line.getAttribute("x1"));
  const calibratedText = output.textContent;
  const left = 12, width = 616;  // the plotting area of svg.histogram
  const place = (value) => left + (width * (value - data.low)) / (data.high - data.low);
  const share = (scores, wrong) => (scores.length ? scores.filter(wrong).length / scores.length : null);
  const words = (rate, n, noun) =>
    (rate === null ? `no ${noun}` : `${Math.round(rate * n)} of ${n} ${noun} (${(100 * rate).toFixed(1)} %)`);

  const show = (threshold, calibrated) => {
    const x = calibrated ? start : place(threshold);
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    const alarms = share(data.scores.normal, (score) => score > threshold);
    const misses = share(data.scores.defect, (score) => score <= threshold);
    output.textContent = calibrated ? calibratedText
      : `At a threshold of ${threshold.toPrecision(3)}, ${words(alarms, data.n.normal, "good images")} are stopped and ` +
        `${words(misses, data.n.defect, "defects")} are missed.`;
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => show(Number(input.value), false));
  button.addEventListener("click", () => { input.value = data.threshold; show(data.threshold, true); });
  const drag = (event) => {
    const at = svg.createSVGPoint();
    at.x = event.clientX;
    const x = at.matrixTransform(svg.getScreenCTM().inverse()).x;
    input.value = data.low + ((x - left) / width) * (data.high - data.low);
    show(Number(input.value), false);
  };
  svg.addEventListener("pointerdown", (event) => { svg.setPointerCapture(event.pointerId); drag(event); });
  svg.addEventListener("pointermove", (event) => { if (svg.hasPointerCapture(event.pointerId)) drag(event); });
  figure.classList.add("live");
  figure.querySelector(".slider").hidden = false;
}

// A hash whole, selected and, where the browser allows it, in the clipboard.
for (const hash of all(".hash")) {
  hash.tabIndex = 0;
  hash.setAttribute("role", "button");
  hash.setAttribute("aria-label", `Show and copy ${hash.dataset.full}`);
  const copy = () => {
    hash.textContent = hash.dataset.full;
    getSelection().selectAllChildren(hash);
    navigator.clipboard?.writeText(hash.dataset.full).catch(() => { /* it is selected */ });
  };
  hash.addEventListener("click", copy);
  hash.addEventListener("keydown", (event) => { if (event.key === "Enter") copy(); });
}

// The filters: each shows how many pictures its choices would leave, given the other filters.
const shots = all("article.shot");
const form = document.querySelector(".filters");
if (form) {
  const selects = all("select", form);
  const fits = (shot, select, value = select.value) => !value || value === "=" + shot.dataset[select.name];
  const apply = () => {
    for (const shot of shots) shot.hidden = !selects.every((select) => fits(shot, select));
    for (const group of all("[data-group]")) group.hidden = !all("article.shot", group).some((shot) => !shot.hidden);
    for (const select of selects) {
      const left = shots.filter((shot) => selects.every((other) => other === select || fits(shot, other)));
      for (const option of select.options) {
        option.textContent = `${option.dataset.text} (${left.filter((shot) => fits(shot, select, option.value)).length})`;
      }
    }
    form.querySelector("output").textContent =
      `${shots.filter((shot) => !shot.hidden).length} of ${shots.length} pictures`;
  };
  form.addEventListener("change", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  for (const link of all("[data-only]")) {
    link.addEventListener("click", () => {
      for (const select of selects) select.value = select.name === "class" ? "=" + link.dataset.only : "";
      apply();
    });
  }
  form.hidden = false;
  apply();
}

// A picture large, with its maps. The arrow keys go through what the filters show.
{
  const dialog = document.getElementById("zoom"), content = dialog.querySelector(".content");
  let at = null;
  const show = (shot) => {
    at = shot;
    content.className = `content ${shot.className}`;
    content.replaceChildren(...[...shot.children].map((child) => child.cloneNode(true)));
    const tiles = content.querySelector(".tiles");
    for (const name of ["role", "tabindex", "aria-label"]) tiles.removeAttribute(name);
    const seen = shots.filter((one) => !one.hidden);
    dialog.querySelector(".place").textContent = `${seen.indexOf(shot) + 1} of ${seen.length}`;
  };
  const step = (by) => {
    const seen = shots.filter((shot) => !shot.hidden);
    show(seen[(seen.indexOf(at) + by + seen.length) % seen.length]);
  };
  for (const shot of shots) {
    const tiles = shot.querySelector(".tiles");
    tiles.tabIndex = 0;
    tiles.setAttribute("role", "button");
    tiles.setAttribute("aria-label", `Enlarge ${shot.querySelector("code").textContent}`);
    const open = () => { show(shot); dialog.showModal(); dialog.querySelector(".close").focus(); };
    tiles.addEventListener("click", open);
    tiles.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); }
    });
  }
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
  for (const button of all("[data-step]", dialog)) {
    button.addEventListener("click", () => step(Number(button.dataset.step)));
  }
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => at.querySelector(".tiles").focus());  // where the reader has come to
}
