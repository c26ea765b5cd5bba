// The token overlays: the frames of a question, each token coloured by the reason for which an arm kept or dropped it.
// Two arms stand side by side and share the slider.
"use strict";
if (document.getElementById("overlay-canvas")) {
  const { overlays, films, colours, unknown, covers } = data;
  const part = (name) => document.getElementById(`overlay-${name}`);
  const sides = ["", "-beside"].map((suffix) => ({
    ...Object.fromEntries(["canvas", "legend", "shown", "about"].map((name) => [name, part(name + suffix)])),
    context: part(`canvas${suffix}`).getContext("2d"), arm: "",
  }));
  const [main, beside] = sides;
  const images = new Map();
  const state = { overlay: 0, frame: 0, timer: 0 };
  const SCALE = 2; // canvas pixels for a stored one, so that lines between small tokens stay thin

  const current = () => overlays[state.overlay];
  const takenOn = (side) => current().taken.find((taken) => taken.arm === side.arm);
  const colourOf = (taken, name) => taken.colours[name] || colours[name] || unknown;

  function element(name, text, parent, className) {
    const made = document.createElement(name);
    if (text !== "") made.textContent = text;
    if (className) made.className = className;
    parent.append(made);
    return made;
  }

  function frameCount(taken) {
    const film = films[taken.film];
    return film && film.jpegs.length ? film.jpegs.length : taken.grid.frames * taken.picture.frames;
  }

  // Code of the token that covers a cell, in the row of the grid that stands for a frame.
  function row(taken, frame) {
    return Math.min(Math.floor(frame / taken.picture.frames), taken.grid.frames - 1);
  }

  const tokens = ({ grid }) => grid.frames * grid.height * grid.width;
  const dropped = (taken) => taken.counts[0] || 0;

  // An arm's codes, a byte each; null while they are being unpacked, after which what is shown is drawn again.
  function codesOf(taken) {
    if (taken.unpacked === undefined) {
      taken.unpacked = null;
      inflate(taken.reason).then((codes) => {
        taken.unpacked = codes;
        show();
      });
    }
    return taken.unpacked;
  }

  function codeAt(taken, time, y, x) {
    return taken.unpacked[time * taken.grid.height * taken.grid.width + y * taken.picture.stride + x];
  }

  function count(taken, frame) {
    const here = {};
    for (const code in taken.codes) here[code] = 0;
    const { height, width } = taken.picture;
    const time = row(taken, frame);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) here[codeAt(taken, time, y, x)] += 1;
    }
    return here;
  }

  function image(taken, frame) {
    const film = films[taken.film];
    const jpeg = film && film.jpegs[frame];
    if (!jpeg) return null;
    const key = `${taken.film}/${frame}`;
    if (!images.has(key)) {
      const made = new Image();
      made.addEventListener("load", draw);
      made.src = `data:image/jpeg;base64,${jpeg}`;
      images.set(key, made);
    }
    return images.get(key);
  }

  function paintTokens({ canvas, context }, taken, frame) {
    const { height, width } = taken.picture;
    const time = row(taken, frame);
    const [w, h] = [canvas.width / width, canvas.height / height];
    const edge = Math.max(1.5, Math.min(w, h) / 14);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const name = taken.codes[codeAt(taken, time, y, x)];
        const [left, top] = [Math.round(x * w), Math.round(y * h)];
        const [across, down] = [Math.round((x + 1) * w) - left, Math.round((y + 1) * h) - top];
        context.fillStyle = context.strokeStyle = colourOf(taken, name);
        context.globalAlpha = covers[name] ?? covers.others;
        context.fillRect(left, top, across, down);
        if (name === "dropped") continue;
        context.globalAlpha = name === "all" ? 0.5 : 1;
        context.lineWidth = edge;
        context.strokeRect(left + edge / 2, top + edge / 2, across - edge, down - edge);
      }
    }
    context.globalAlpha = 1;
  }

  // The cells of what the question asks for: white within black, which is seen on any frame.
  function outline({ canvas, context }, taken, frame) {
    const [top, left, bottom, right] = taken.evidence[frame];
    const [w, h] = [canvas.width / taken.picture.width, canvas.height / taken.picture.height];
    const edge = Math.max(3, Math.min(w, h) / 8);
    for (const [colour, width, inset] of [["#000000", 2 * edge, edge], ["#FFFFFF", edge, edge]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.strokeRect(left * w + inset, top * h + inset, (right - left) * w - 2 * inset, (bottom - top) * h - 2 * inset);
    }
  }

  // How many tokens cover the cells of all its frames, and how many of them are left.
  function evidenceOf(taken) {
    const seen = new Set();
    for (const frame in taken.evidence) {
      const [top, left, bottom, right] = taken.evidence[frame];
      for (let y = top; y < bottom; y++) {
        for (let x = left; x < right; x++) seen.add([row(taken, Number(frame)), y, x].join());
      }
    }
    const left = [...seen].filter((place) => codeAt(taken, ...place.split(",").map(Number)) !== 0);
    return [left.length, seen.size];
  }

  function draw() {
    sides.forEach(drawOn);
  }

  // A frame beyond the end of a side's own film is its last.
  const frameOn = (taken) => Math.min(state.frame, frameCount(taken) - 1);
  const known = (taken) => Object.keys(taken.evidence).length > 0;
  const evidenceIn = (taken) => part("evidence").checked && frameOn(taken) in taken.evidence;

  function drawOn(side) {
    const { canvas, context } = side;
    const taken = takenOn(side);
    if (!taken || !codesOf(taken)) {
      context.clearRect(0, 0, canvas.width, canvas.height);
      return;
    }
    const picture = image(taken, frameOn(taken));
    if (picture && !picture.complete) return; // drawn again when it is loaded
    const size = picture ? [picture.naturalWidth, picture.naturalHeight]
      : [20 * taken.picture.width, 20 * taken.picture.height];
    [canvas.width, canvas.height] = size.map((side) => side * SCALE);
    if (picture) {
      context.imageSmoothingQuality = "high";
      context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    } else {
      context.fillStyle = "#777777";
      context.fillRect(0, 0, canvas.width, canvas.height);
    }
    if (part("tint").checked) paintTokens(side, taken, frameOn(taken));
    if (evidenceIn(taken)) outline(side, taken, frameOn(taken));
  }

  function describe(side) {
    const taken = takenOn(side);
    side.legend.replaceChildren();
    side.about.textContent = side.shown.textContent = "";
    side.canvas.setAttribute("aria-busy", String(Boolean(taken) && !codesOf(taken)));
    if (!taken || !codesOf(taken)) return;
    const here = count(taken, frameOn(taken));
    side.shown.textContent = taken.name;
    const said = [];
    for (const code of Object.keys(taken.codes).map(Number).sort((a, b) => (a === 0) - (b === 0) || a - b)) {
      const name = taken.codes[code];
      const line = element("tr", "", side.legend);
      line.dataset.reason = name;
      const head = element("th", "", line);
      head.scope = "row";
      const swatch = element("span", "", head, "swatch");
      swatch.style.background = colourOf(taken, name);
      head.append(name === "all" ? "kept, as all of its place" : name);
      element("td", String(here[code]), line, "frame");
      element("td", String(taken.counts[code]), line, "whole");
      said.push(`${here[code]} ${name}`);
    }
    const all = tokens(taken);
    const notes = [`${all - dropped(taken)} of ${all} video tokens are left at the end of the prefill.`];
    const outside = all - taken.grid.frames * taken.picture.height * taken.picture.width;
    if (taken.picture.frames > 1) notes.push(`A token covers ${taken.picture.frames} frames.`);
    if (outside) {
      notes.push(`${outside} tokens (newlines, ends of groups) lie in no frame: only the column "whole video" counts them.`);
    }
    if (!films[taken.film] || !films[taken.film].jpegs.length) notes.push("The frames are not stored; grey stands for them.");
    if (known(taken) && part("evidence").checked) {
      const [left, all] = evidenceOf(taken);
      const frames = Object.keys(taken.evidence).map((frame) => Number(frame) + 1).sort((a, b) => a - b);
      notes.push(`The evidence is in frame ${frames.join(", ")}: ${left} of its ${all} tokens are left.`);
    }
    if (evidenceIn(taken)) {
      const [top, left, bottom, right] = taken.evidence[frameOn(taken)];
      said.push(`evidence in rows ${top + 1} to ${bottom}, columns ${left + 1} to ${right}`);
    }
    side.about.textContent = notes.join(" ");
    side.canvas.setAttribute("aria-label", `Frame ${frameOn(taken) + 1} of ${frameCount(taken)}, ${taken.name}: ${said.join(", ")}`);
  }

  function setFrame(frame) {
    const taken = takenOn(main);
    const total = taken ? frameCount(taken) : 1;
    state.frame = Math.max(0, Math.min(frame, total - 1));
    const slider = part("frame");
    slider.max = total - 1;
    slider.value = state.frame;
    slider.disabled = part("play").disabled = !taken;
    const film = taken && films[taken.film];
    const second = film && film.seconds[state.frame];
    part("time").textContent = `${state.frame + 1} of ${total}` + (second === undefined ? "" : ` · ${second.toFixed(1)} s`)
      + (taken && evidenceIn(taken) ? " · evidence" : "");
    slider.setAttribute("aria-valuetext", part("time").textContent);
    show();
  }

  function show() {
    sides.forEach(describe);
    draw();
  }

  function setBeside(arm) {
    beside.arm = arm;
    part("beside").value = arm;
    document.getElementById("overlay-right").hidden = !arm;
  }

  function setArm(arm) {
    main.arm = arm;
    for (const button of part("arms").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.arm === arm));
    }
    setFrame(state.frame);
  }

  // An arm's name ends with its budget.
  const budgetOf = (taken) => taken.name.split(" at ").pop();

  function nameOf(overlay, taken) {
    const several = new Set(overlay.taken.map((other) => other.model)).size > 1;
    return several ? `${taken.name}, ${taken.model}` : taken.name;
  }

  function answers(overlay) {
    part("arms").replaceChildren();
    for (const taken of overlay.taken) {
      const line = element("tr", "", part("arms"));
      const head = element("th", "", line);
      head.scope = "row";
      const button = element("button", nameOf(overlay, taken), head);
      button.type = "button";
      button.dataset.arm = taken.arm;
      button.disabled = taken.lacking !== "";
      button.addEventListener("click", () => setArm(taken.arm));
      const cell = element("td", "", line);
      if (taken.answer !== null) element("span", taken.answer === "" ? "(empty)" : taken.answer, cell);
      if (taken.correct !== null && overlay.target !== null) {
        element("span", taken.correct ? " ✓ right" : " ✗ wrong", cell, taken.correct ? "right" : "wrong");
      }
      if (taken.lacking) element("div", `no tokens: ${taken.lacking}`, cell, "lacking");
      const share = taken.lacking ? "" : (100 * (1 - dropped(taken) / tokens(taken))).toFixed(1);
      element("td", share, line);
    }
  }

  // The question as the model read it; the line of the right option is marked.
  function question(overlay) {
    part("text").replaceChildren();
    for (const line of overlay.question.split("\n")) {
      const option = /^\s*\(?([A-Z])[.):]/.exec(line);
      const right = option !== null && option[1] === overlay.target;
      element("div", line + (right ? "  ← right" : ""), part("text"), right ? "target" : "");
    }
    if (overlay.target !== null) element("p", `Right answer: ${overlay.target}`, part("text"), "hint");
  }

  function open(number, arm) {
    state.overlay = number;
    const overlay = current();
    part("question").value = String(number);
    part("title").textContent = `${overlay.id} · ${overlay.video}`;
    part("link").href = `#${encodeURIComponent(overlay.anchor)}`;
    question(overlay);
    answers(overlay);
    const drawable = overlay.taken.filter((taken) => !taken.lacking);
    // Most say the most with the method that the project is about, or with any that drops something.
    const best = drawable.find((taken) => taken.arm === arm) || drawable.find((taken) => taken.proposed)
      || drawable.find(dropped) || drawable[0];
    const others = drawable.filter((taken) => taken !== best);
    part("beside").replaceChildren(new Option("nothing", ""));
    for (const taken of drawable) part("beside").append(new Option(nameOf(overlay, taken), taken.arm));
    part("pick").hidden = drawable.length < 2;
    part("known").hidden = !drawable.some(known);
    // What it is compared with best is of the same budget.
    const rival = drawable.find((taken) => taken.arm === beside.arm && taken !== best)
      || others.find((taken) => dropped(taken) && budgetOf(taken) === budgetOf(best))
      || others.find(dropped) || others[0];
    setBeside(rival ? rival.arm : "");
    setArm(best ? best.arm : "");
    part("status").textContent = best ? "" : "No arm has stored its tokens for this question.";
  }

  function follow() {
    let wanted = location.hash.slice(1);
    try {
      wanted = decodeURIComponent(wanted);
    } catch (error) {
      if (!(error instanceof URIError)) throw error; // a percent sign of the id itself, not encoded
    }
    if (!wanted.startsWith("overlay-")) return;
    const number = overlays.findIndex((overlay) => overlay.anchor === wanted);
    if (number < 0) {
      part("status").textContent = `No overlay is stored for ${wanted.slice("overlay-".length)}.`;
    } else {
      open(number, main.arm);
    }
    document.getElementById("overlays").scrollIntoView();
  }

  function play(on) {
    clearInterval(state.timer);
    state.timer = on ? setInterval(() => setFrame((state.frame + 1) % (Number(part("frame").max) + 1)), 500) : 0;
    part("play").setAttribute("aria-pressed", String(on));
    part("play").textContent = on ? "Pause" : "Play";
  }

  part("question").addEventListener("change", (event) => {
    open(Number(event.target.value), main.arm);
    history.replaceState(null, "", part("link").href);
  });
  part("frame").addEventListener("input", (event) => {
    play(false);
    setFrame(Number(event.target.value));
  });
  part("beside").addEventListener("change", (event) => {
    setBeside(event.target.value);
    setFrame(state.frame);
  });
  part("play").addEventListener("click", () => play(!state.timer));
  part("tint").addEventListener("change", draw);
  part("evidence").addEventListener("change", () => setFrame(state.frame));
  addEventListener("hashchange", follow);
  open(0, "");
  follow();
}
