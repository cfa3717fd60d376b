// The page of playground.py in a browser: it shows the state that Python holds, and changes it by mouse, touch or keys.
// Python checks, draws and remembers; here is only what a hand does.

const SIDE = 384;           // of the canvas, in its own pixels
const STEP = 1 / 32;        // of an arrow key; all places are shares of the canvas, from 0 to 1
const LEAST = 1 / 16;       // side of a box; what is smaller was a click
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const HELP = {
  box: "Drag on the canvas: a new box. Drag a box to move it, a corner to resize it; × deletes it.\n"
    + "Keys on the canvas: arrows move the cross, Enter puts a box there. On a box (Tab): arrows move it, "
    + "Shift and arrows resize it, Delete deletes it.",
  brush: "Drag over the canvas: a hole, for the model to fill.\nKeys: arrows move the brush, Enter paints.",
  eraser: "Drag over a hole to close it.\nKeys: arrows move the eraser, Enter erases.",
};

const within = (value, low, high) => Math.min(Math.max(value, low), high);
const percent = (value) => `${Math.round(100 * value)}%`;      // to be read
const share = (value) => `${(100 * value).toFixed(3)}%`;        // for the style

// make("label", { className: "x" }, "text", child, ...): an element
function make(tag, properties = {}, ...children) {
  const { role, aria = {}, ...own } = properties;
  const made = Object.assign(document.createElement(tag), own);
  if (role) made.setAttribute("role", role);
  for (const [name, value] of Object.entries(aria)) made.setAttribute(`aria-${name}`, value);
  made.dataset.lmSuppressShortcuts = "true"; // else Jupyter would take Enter, Delete and arrows for its own
  made.append(...children);
  return made;
}

function render({ model, el }) {
  const heard = [];           // what to stop listening to in the end
  const on = (name, show) => { model.on(`change:${name}`, show); heard.push([`change:${name}`, show]); show(); };
  const tell = (values) => { for (const name in values) model.set(name, values[name]); model.save_changes(); };
  const reads = (key) => model.get("reads").includes(key);
  const tools = [...(reads("labels") ? ["box"] : []), ...(reads("mask") ? ["brush", "eraser"] : [])];
  const size = model.get("size");
  const state = { tool: tools[0], boxes: [], hole: new Uint8Array(), cursor: [0.5, 0.5], drag: null,
    brush: 3 * size / 32 };   // in pixels of the picture

  // -------------------------------------------------------------------------------------------------------- the canvas

  const canvas = make("canvas", { width: SIDE, height: SIDE });
  const cursor = make("div", { className: "ldm-cursor" });
  const stage = make("div", { className: "ldm-stage", tabIndex: tools.length ? 0 : -1, role: "application" },
    canvas, cursor);
  const help = make("p", { className: "ldm-help" });
  const pen = canvas.getContext("2d"), hatch = hatching(pen);
  let picture = null;

  function showCanvas() {
    if (picture) pen.drawImage(picture, 0, 0, SIDE, SIDE);
    pen.fillStyle = hatch;
    const cell = SIDE / size;
    state.hole.forEach((on, i) => on && pen.fillRect((i % size) * cell, Math.floor(i / size) * cell, cell, cell));
  }

  function showBoxes() {
    const shown = [...stage.querySelectorAll(".ldm-box")];
    shown.slice(state.boxes.length).forEach((box) => box.remove());
    state.boxes.forEach(([noun, [x0, y0, x1, y1]], i) => {
      const box = shown[i] ?? stage.appendChild(newBox());
      box.dataset.index = i;
      box.dataset.color = i % 3;
      box.firstChild.textContent = noun;
      Object.assign(box.style, { left: share(x0), top: share(y0), width: share(x1 - x0), height: share(y1 - y0) });
      box.setAttribute("aria-label", `box ${i + 1} of ${state.boxes.length}: ${noun}, from the left ${percent(x0)}, `
        + `from the top ${percent(y0)}, width ${percent(x1 - x0)}, height ${percent(y1 - y0)}`);
    });
  }

  function showTool() {
    help.textContent = HELP[state.tool] ?? "This model reads neither boxes nor holes.";
    stage.dataset.tool = state.tool;
    stage.setAttribute("aria-label", `canvas. ${help.textContent}`);
    const wide = state.tool === "box" ? "" : share(state.brush / size);
    Object.assign(cursor.style, { left: share(state.cursor[0]), top: share(state.cursor[1]), width: wide,
      height: wide });
  }

  // ----------------------------------------------------------------------------------- boxes: [noun, [x0, y0, x1, y1]]

  const keepBoxes = () => tell({ boxes: structuredClone(state.boxes) });
  const roomForBox = () => {
    const free = state.boxes.length < model.get("most");
    if (!free) tell({ message: `This model knows layouts of up to ${model.get("most")} things: delete one first.` });
    return free;
  };

  function moved([x0, y0, x1, y1], dx, dy) {
    const [x, y] = [within(x0 + dx, 0, 1 - (x1 - x0)), within(y0 + dy, 0, 1 - (y1 - y0))];
    return [x, y, x + (x1 - x0), y + (y1 - y0)];
  }

  // corner: the two of x0, y0, x1, y1 that follow, as [0, 1], [2, 1], [0, 3] or [2, 3]
  function resized(box, corner, dx, dy) {
    const made = [...box];
    for (const [k, by] of [[corner[0], dx], [corner[1], dy]]) {
      const other = box[(k + 2) % 4];
      made[k] = k < 2 ? within(box[k] + by, 0, other - LEAST) : within(box[k] + by, other + LEAST, 1);
    }
    return made;
  }

  function addBox([x, y]) {
    if (!roomForBox()) return;
    state.boxes.push([noun.value, moved([0, 0, 0.3, 0.3], x - 0.15, y - 0.15)]);
    showBoxes();
    keepBoxes();
    stage.lastChild.focus();
  }

  function removeBox(i) {
    state.boxes.splice(i, 1);
    showBoxes();
    keepBoxes();
    stage.focus();
  }

  // --------------------------------------------------------------------------------------- the hole: size * size bytes

  const keepHole = () => tell({ hole: new DataView(state.hole.slice().buffer) });

  function dab([x, y]) {
    const [column, row, radius] = [x * size, y * size, state.brush / 2];
    for (let i = 0; i < state.hole.length; i++)
      if (Math.hypot((i % size) + 0.5 - column, Math.floor(i / size) + 0.5 - row) <= radius)
        state.hole[i] = state.tool === "brush" ? 1 : 0;
    showCanvas();
  }

  function stroke(from, to) {
    const steps = 1 + Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) * size);
    for (let k = 1; k <= steps; k++) dab([0, 1].map((a) => from[a] + ((to[a] - from[a]) * k) / steps));
  }

  // ------------------------------------------------------------------------------------- mouse, pen, finger; then keys

  function place(event) {
    const { left, top, width, height } = stage.getBoundingClientRect();
    return [within((event.clientX - left) / width, 0, 1), within((event.clientY - top) / height, 0, 1)];
  }

  stage.addEventListener("pointerdown", (event) => {
    if (event.button || !tools.length || event.target.closest(".ldm-delete")) return;
    event.preventDefault();
    const at = place(event), box = event.target.closest(".ldm-box");
    state.cursor = at;
    if (state.tool !== "box") {
      state.drag = { from: at };
      dab(at);
      stage.focus({ preventScroll: true });
    } else if (box) {
      const index = Number(box.dataset.index), corner = event.target.dataset.corner;
      state.drag = { from: at, index, was: state.boxes[index][1], corner: corner && JSON.parse(corner) };
      box.focus({ preventScroll: true });
    } else if (roomForBox()) {
      state.drag = { from: at, index: state.boxes.length, fresh: true };
      stage.focus({ preventScroll: true });
    }
    if (state.drag) stage.setPointerCapture(event.pointerId);
    showTool();
  });

  stage.addEventListener("pointermove", (event) => {
    const { drag } = state, at = place(event);
    if (!drag) return;
    if (state.tool !== "box") {
      stroke(drag.from, at);
      drag.from = at;
    } else if (drag.fresh) {
      const low = at.map((value, a) => Math.min(value, drag.from[a]));
      const high = at.map((value, a) => Math.max(value, drag.from[a]));
      const large = high[0] - low[0] >= LEAST && high[1] - low[1] >= LEAST;
      state.boxes.splice(drag.index, 1, ...(large ? [[noun.value, [...low, ...high]]] : []));
      showBoxes();
    } else {
      const [dx, dy] = [at[0] - drag.from[0], at[1] - drag.from[1]];
      state.boxes[drag.index][1] = drag.corner ? resized(drag.was, drag.corner, dx, dy) : moved(drag.was, dx, dy);
      showBoxes();
    }
  });

  function finish() {
    const { drag } = state;
    state.drag = null;
    if (!drag) return;
    if (state.tool !== "box") return keepHole();
    if (drag.index < state.boxes.length && state.boxes[drag.index][1] !== drag.was) keepBoxes();
    if (drag.fresh) stage.querySelector(`[data-index="${drag.index}"]`)?.focus({ preventScroll: true });
  }
  stage.addEventListener("pointerup", finish);
  stage.addEventListener("pointercancel", finish);

  stage.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key], box = event.target.closest(".ldm-box");
    const index = box && Number(box.dataset.index);
    if (arrow) {
      const [dx, dy] = arrow.map((way) => way * STEP);
      if (box) {
        const was = state.boxes[index][1];
        state.boxes[index][1] = event.shiftKey ? resized(was, [2, 3], dx, dy) : moved(was, dx, dy);
        showBoxes();
        keepBoxes();
      } else {
        state.cursor = [within(state.cursor[0] + dx, 0, 1), within(state.cursor[1] + dy, 0, 1)];
        showTool();
      }
    } else if (box && (event.key === "Delete" || event.key === "Backspace")) {
      removeBox(index);
    } else if (event.target === stage && (event.key === "Enter" || event.key === " ")) {
      if (state.tool === "box") addBox(state.cursor);
      else { dab(state.cursor); keepHole(); }
    } else return;
    event.preventDefault();
  });

  stage.addEventListener("click", (event) => {
    const button = event.target.closest(".ldm-delete");
    if (button) removeBox(Number(button.parentNode.dataset.index));
  });

  // ---------------------------------------------------------------------------------------------------------- controls

  const row = (text, input, ...more) => make("label", { className: "ldm-row" }, make("span", {}, text), input, ...more);

  // a control and a trait of Python's that follow each other
  function bound(name, input, read = (given) => given.value, property = "value") {
    const shown = make("output");
    input.addEventListener("input", () => { shown.textContent = input.value; });
    input.addEventListener(input.type === "text" ? "input" : "change", () => {
      tell({ [name]: read(input) });
      input[property] = model.get(name);
    });
    on(name, () => {
      if (input[property] !== String(model.get(name))) input[property] = model.get(name);
      shown.textContent = model.get(name);
    });
    return input.type === "range" ? [input, shown] : [input];
  }
  const range = (min, max, step) => make("input", { type: "range", min, max, step });
  const number = (input) => within(Number(input.value) || 0, Number(input.min), Number(input.max));
  const whole = (input) => Math.round(number(input));
  const menu = (names) => make("select", {}, ...names.map((name) => make("option", { value: name }, name || "none")));

  const group = `ldm-tool-${Math.random().toString(36).slice(2)}`;
  const choices = tools.map((tool) => {
    const radio = make("input", { type: "radio", name: group, value: tool, checked: tool === state.tool });
    radio.addEventListener("change", () => { state.tool = tool; showTool(); });
    return make("label", {}, radio, tool);
  });
  const noun = menu(model.get("nouns"));
  const brush = Object.assign(range(size / 32, 3 * size / 8, size / 64), { value: state.brush });
  brush.addEventListener("input", () => { state.brush = Number(brush.value); showTool(); });
  const caption = make("input", { type: "text", placeholder: "a red apple at night", autocomplete: "off" });
  const remarks = make("p", { className: "ldm-remarks", role: "status" });
  const message = make("p", { className: "ldm-message", role: "status" });
  const button = (text, act, className = "") => {
    const made = make("button", { type: "button", className }, text);
    made.addEventListener("click", () => { if (!model.get("busy")) model.send({ act }); });
    return made;
  };
  const draw = button("Draw", "draw", "ldm-draw");
  caption.addEventListener("keydown", (event) => { if (event.key === "Enter") draw.click(); });

  el.classList.add("ldm-playground");
  el.append(
    make("div", { className: "ldm-left" }, stage, help),
    make("div", { className: "ldm-controls" },
      ...(tools.length > 1 ? [make("div", { className: "ldm-row", role: "radiogroup", aria: { label: "tool" } },
        make("span", {}, "tool"), ...choices)] : []),
      ...(reads("labels") ? [row("a box is a", noun)] : []),
      ...(reads("mask") ? [row("brush size", brush)] : []),
      ...(reads("caption") ? [row("caption", ...bound("caption", caption)), remarks] : []),
      ...(reads("class") ? [row("class", ...bound("kind", menu(["", ...model.get("nouns")])))] : []),
      row("guidance", ...bound("guidance", range(1, 8, 0.5), number)),
      row("steps", ...bound("steps", range(4, 50, 1), whole)),
      row("seed", ...bound("seed", make("input", { type: "number", min: 0, max: 1e6 }), whole)),
      row("another seed after each picture", ...bound("another", make("input", { type: "checkbox" }),
        (input) => input.checked, "checked")),
      make("div", { className: "ldm-row" }, draw, button("A real scene", "real_scene"), button("Undo", "undo"),
        button("Clear", "clear")),
      message));

  // ----------------------------------------------------------------------------------------- what Python says is shown

  on("picture", async () => {
    picture = await createImageBitmap(new Blob([model.get("picture")], { type: "image/png" }));
    showCanvas();
  });
  on("boxes", () => { state.boxes = structuredClone(model.get("boxes")); showBoxes(); });
  on("hole", () => {
    const { buffer, byteOffset, byteLength } = model.get("hole");
    state.hole = new Uint8Array(buffer.slice(byteOffset, byteOffset + byteLength));
    showCanvas();
  });
  on("remarks", () => { remarks.textContent = model.get("remarks").join("\n"); });
  on("message", () => { message.textContent = model.get("message"); });
  on("busy", () => {
    draw.textContent = model.get("busy") ? "drawing ..." : "Draw";
    draw.setAttribute("aria-disabled", model.get("busy"));
  });
  showTool();
  return () => heard.forEach(([name, show]) => model.off(name, show));
}

function newBox() {
  const handles = [[0, 1], [0, 3], [2, 3]].map((corner) => {
    const made = make("span", { className: `ldm-handle ldm-${corner.join("")}` });
    made.dataset.corner = JSON.stringify(corner);
    return made;
  });
  const cross = make("button", { type: "button", className: "ldm-delete", tabIndex: -1, title: "delete it" }, "×");
  return make("div", { className: "ldm-box", tabIndex: 0, role: "group" }, make("b"), ...handles, cross);
}

// what a hole looks like: black with grey lines
function hatching(pen) {
  const tile = make("canvas", { width: 12, height: 12 }), lines = tile.getContext("2d");
  lines.fillRect(0, 0, 12, 12);
  lines.strokeStyle = "#787878";
  for (const shift of [-12, 0, 12]) { lines.moveTo(12 + shift, 0); lines.lineTo(shift, 12); }
  lines.stroke();
  return pen.createPattern(tile, "repeat");
}

export default { render };
