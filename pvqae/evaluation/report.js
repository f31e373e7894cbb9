// Without scripts the page shows the calibrated threshold and small pictures; these only add to it.
for (const figure of document.querySelectorAll("[data-histogram]")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const [input, button, output, line] = ["input", "button", "output", ".cut"].map((name) => figure.querySelector(name));
  const start = Number(line.getAttribute("x1"));
  const calibratedText = output.textContent;
  const left = 12, width = 616;  // the plotting area of svg.histogram
  const place = (value) => left + (width * (value - data.low)) / (data.high - data.low);
  const share = (scores, wrong) => (scores.length ? scores.filter(wrong).length / scores.length : null);
  const words = (rate, n, noun) => (rate === null ? `no ${noun}` : `${(100 * rate).toFixed(1)} % of ${n} ${noun}`);

  const show = (threshold, calibrated) => {
    const x = calibrated ? start : place(threshold);
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    const alarms = share(data.scores.normal, (score) => score > threshold);
    const misses = share(data.scores.defect, (score) => score <= threshold);
    output.textContent = calibrated ? calibratedText
      : `At ${threshold.toPrecision(3)}: false alarms ${words(alarms, data.n.normal, "good images")}, ` +
        `misses ${words(misses, data.n.defect, "defects")}.`;
  };
  input.addEventListener("input", () => show(Number(input.value), false));
  button.addEventListener("click", () => { input.value = data.threshold; show(data.threshold, true); });
  figure.querySelector(".slider").hidden = false;
}

for (const shot of document.querySelectorAll(".shot")) {
  const button = document.createElement("button");
  button.type = "button";
  const label = () => { button.textContent = shot.classList.contains("large") ? "Smaller" : "Enlarge"; };
  button.addEventListener("click", () => { shot.classList.toggle("large"); label(); });
  label();
  shot.append(button);
}
