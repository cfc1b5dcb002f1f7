"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  // For whoever looks at the page with a program: the first error, and that everything is drawn.
  const note = (name, value) => { if (!document.body.dataset[name]) document.body.dataset[name] = value; };
  window.addEventListener("error", (event) => note("error", event.message));
  window.addEventListener("unhandledrejection", (event) => note("error", String(event.reason)));
  document.addEventListener("securitypolicyviolation", (event) => note("error", `refused: ${event.blockedURI}`));

  // Figures, over tokens or over steps.
  const PASSES = 6;
  const CONFIG = {
    responsive: true, displaylogo: false, plotlyServerURL: "", showSendToCloud: false,
    modeBarButtonsToRemove: ["sendChartToCloud"],
  };
  const places = data.figures.map(() => byId("figures").appendChild(document.createElement("div")));

  function overSteps(figure) {
    const traces = figure.data.map((trace) => {
      if (!trace.customdata) return trace;
      const steps = Array.isArray(trace.customdata[0]) ? trace.customdata[0] : trace.customdata;
      return { ...trace, x: steps };
    });
    const axis = { ...figure.layout.xaxis, title: { text: "steps" } };
    return { data: traces, layout: { ...figure.layout, xaxis: axis } };
  }

  function withBorders(layout, unit) {
    const borders = layout.meta.borders;
    const shapes = borders.map((border) => ({
      type: "line", x0: border[unit], x1: border[unit], yref: "paper", y0: 0, y1: 1,
      line: { color: "gray", dash: "dot", width: 1 },
    }));
    const annotations = borders.map((border) => ({
      x: border[unit], y: 1, yref: "paper", text: `end of ${escaped(border.stage)}`, showarrow: false,
      xanchor: "right", yanchor: "bottom", font: { size: 10, color: "gray" },
    }));
    return { ...layout, shapes, annotations };
  }

  function scaled(layout) {
    const loss = layout.yaxis.title.text === "nats per token";
    return { ...layout, yaxis: { ...layout.yaxis, type: loss && byId("log").checked ? "log" : "linear" } };
  }

  // Plotly reads some HTML in the texts of a figure.
  function escaped(text) { return text.replace(/[&<>]/g, (char) => `&#${char.charCodeAt(0)};`); }

  function draw() {
    const unit = byId("axis").value === "steps" ? "step" : "tokens";
    const drawn = data.figures.map((figure, index) => {
      const chosen = unit === "step" && figure.layout.meta.overTokens ? overSteps(figure) : figure;
      const layout = scaled(withBorders(chosen.layout, unit));
      return Plotly.react(places[index], chosen.data, layout, CONFIG);
    });
    return Promise.all(drawn);
  }

  // Texts being decoded.
  const state = { prompt: 0, forward: 0, timer: null };

  function element(tag, className, text, parent, title) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    if (title) made.title = title;
    return parent.appendChild(made);
  }

  function played() { return data.played.prompts[state.prompt]; }

  function furthest() { return Math.max(...Object.values(played().modes).map((mode) => mode.forwards)); }

  // The state after so many forwards of this sequence.
  function frameAt(mode, forward) {
    let found = mode.frames[0];
    for (const frame of mode.frames) if (frame.forwards <= forward) found = frame;
    return found;
  }

  function kindOf(name, pass, drafted) {
    if (!drafted) return ["predicted", "predicted"];
    return name === "diffusion" ? [`pass${pass % PASSES}`, "denoised"] : ["accepted", "draft accepted"];
  }

  function addToken(parent, name, text, pass, drafted, now) {
    const [className, what] = kindOf(name, pass, drafted);
    const by = pass === 0 ? "the prefill" : `forward ${pass}`;
    element("span", `token ${className}${pass === now ? " fresh" : ""}`, text, parent, `${what} by ${by}`);
  }

  function showMode(name, mode) {
    const box = element("div", "mode", undefined, byId("modes"));
    box.dataset.mode = name;
    const frame = frameAt(mode, state.forward);
    const ended = frame.finished ? `, ended (${mode.finish})` : "";
    element("h3", "", name, box);
    const known = frame.committed + frame.block.filter((piece) => piece !== null).length;
    const rate = frame.forwards ? (frame.committed / frame.forwards).toFixed(2) : "-";
    element("p", "figures", `forward ${frame.forwards}: ${frame.what}${ended}; ${known} tokens, ` +
      `${frame.committed} committed, ${rate} per forward`, box);
    if (mode.draftsVerified)
      element("p", "figures", `of the whole text: ${mode.draftsAccepted} of ${mode.draftsVerified} drafts accepted`, box);
    const text = element("div", "text", undefined, box);
    element("span", "given", played().text, text);
    for (let index = 0; index < frame.committed; index += 1)
      addToken(text, name, mode.pieces[index], mode.passes[index], mode.drafted[index], frame.forwards);
    frame.block.forEach((piece, index) => {
      if (piece === null) element("span", "token masked", "\u2591", text, "masked");
      else addToken(text, name, piece, frame.passes[index], frame.drafted[index], frame.forwards);
    });
    for (const piece of frame.rejected) element("span", "token rejected", piece, text, "rejected draft");
    for (const piece of frame.drafts) element("span", "token waiting", piece, text, "draft that the next forward verifies");
  }

  function show() {
    byId("forward").max = furthest();
    state.forward = Math.max(0, Math.min(state.forward, furthest()));
    byId("forward").value = state.forward;
    byId("count").value = state.forward;
    byId("prompt").value = state.prompt;
    byId("modes").replaceChildren();
    for (const [name, mode] of Object.entries(played().modes)) showMode(name, mode);
  }

  function move(forward) { state.forward = forward; show(); }

  function stop() {
    clearInterval(state.timer);
    state.timer = null;
    byId("play").textContent = "play";
  }

  function play() {
    if (state.timer !== null) { stop(); return; }
    if (state.forward >= furthest()) state.forward = 0;
    byId("play").textContent = "stop";
    state.timer = setInterval(() => { move(state.forward + 1); if (state.forward >= furthest()) stop(); }, 250);
  }

  // The address says what is shown: report.html#prompt=1&forward=7
  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const number = (name) => Math.max(0, Number.parseInt(given.get(name) ?? "0", 10) || 0);
    if (given.get("over") === "steps") byId("axis").value = "steps";
    if (data.played) state.prompt = Math.min(number("prompt"), data.played.prompts.length - 1);
    state.forward = number("forward");
  }

  function startPlayer() {
    byId("player").hidden = false;
    data.played.prompts.forEach((prompt, index) => {
      const option = element("option", "", `${index + 1}: ${prompt.text.trim().slice(-70)}`, byId("prompt"));
      option.value = index;
    });
    for (let pass = 0; pass < PASSES; pass += 1) element("span", `pass${pass}`, pass, byId("passes"));
    byId("prompt").addEventListener("change", (event) => { state.prompt = Number(event.target.value); move(0); });
    byId("forward").addEventListener("input", (event) => move(Number(event.target.value)));
    byId("play").addEventListener("click", play);
    byId("back").addEventListener("click", () => move(state.forward - 1));
    byId("on").addEventListener("click", () => move(state.forward + 1));
    window.addEventListener("hashchange", () => { readAddress(); show(); });
    show();
  }

  readAddress();
  for (const name of ["axis", "log"]) byId(name).addEventListener("change", draw);
  if (data.played) startPlayer();
  draw().then(() => note("drawn", places.length));
}());
