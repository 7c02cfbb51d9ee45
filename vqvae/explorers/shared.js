// What every explorer shares: elements, plots, controls, handles to drag, and a page that stands in
// for the kernel.
// An explorer's module is this file followed by its own, so that the whole is one ES module without
// imports.

const SVG = "http://www.w3.org/2000/svg";
const SHAPES = new Set([
  "svg",
  "g",
  "path",
  "circle",
  "line",
  "rect",
  "text",
  "polygon",
  "title",
  "tspan",
]);

export function update(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === false || value == null) element.removeAttribute(name);
    else element.setAttribute(name, value === true ? "" : value);
  }
  return element;
}

export function make(tag, attributes = {}, ...children) {
  const element = SHAPES.has(tag)
    ? document.createElementNS(SVG, tag)
    : document.createElement(tag);
  update(element, attributes).append(...children);
  return element;
}

// Numbers as people read them: `digits` significant ones, a true minus sign.
export function format(value, digits = 3) {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : value < 0 ? "−∞" : "–";
  const size = Math.abs(value) < 1e-12 ? 0 : Math.abs(value); // what is left of a sum that is zero
  const text =
    size !== 0 && (size < 1e-3 || size >= 1e5)
      ? value.toExponential(digits - 1)
      : String(Number((size && value).toPrecision(digits)));
  return text.replace("-", "−");
}

// Codes

// The index of the codeword nearest to a point of the plane, the first in a tie.
export function nearest([x, y], codes) {
  let best = Infinity,
    owner = 0;
  codes.forEach(([a, b], i) => {
    const distance = (x - a) ** 2 + (y - b) ** 2;
    if (distance < best) {
      best = distance;
      owner = i;
    }
  });
  return owner;
}

// How codes are used, from how often each was chosen; entropy in bits.
export function use(counts) {
  const total = counts.reduce((a, b) => a + b, 0);
  const entropy = counts.reduce(
    (sum, count) => sum - (count ? (count / total) * Math.log2(count / total) : 0),
    0,
  );
  return { entropy, perplexity: 2 ** entropy, dead: counts.filter((count) => count === 0).length };
}

// Plots

export function ticks(low, high, log = false) {
  if (log) {
    const first = Math.ceil(Math.log10(low) - 1e-9),
      last = Math.floor(Math.log10(high) + 1e-9);
    return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => 10 ** (first + i));
  }
  const rough = (high - low) / 5,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * (1 - 1e-9));
  const first = Math.ceil(low / step - 1e-9),
    count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: count }, (_, i) => (first + i) * step);
}

// A plot with axes. `layer` draws in it; `px`, `py` take values to pixels and `at` takes a pointer
// event to values.
// `axes` changes the ranges and draws the ticks again; `xText` writes a tick of the x axis.
export function plot(
  parent,
  {
    title,
    x,
    y,
    xLabel,
    yLabel,
    logY = false,
    square = false,
    names = null,
    xText = format,
    width = 360,
    height = 290,
  },
) {
  const box = { left: 52, right: width - 12, top: 12, bottom: height - 42 };
  if (square) box.right = box.left + (box.bottom - box.top);
  const frame = make("g", { class: "vq-axes" }),
    layer = make("g");
  const svg = make(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": title },
    frame,
    layer,
  );
  parent.append(make("figure", {}, make("figcaption", {}, title), svg));
  const down = (value) => (logY ? Math.log10(value) : value);
  const self = {
    svg,
    layer,
    box,
    px: (value) =>
      box.left + ((value - self.x[0]) / (self.x[1] - self.x[0])) * (box.right - box.left),
    py: (value) =>
      box.bottom -
      ((down(value) - down(self.y[0])) / (down(self.y[1]) - down(self.y[0]))) *
        (box.bottom - box.top),
    at(event) {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(
        svg.getScreenCTM().inverse(),
      );
      const across = (point.x - box.left) / (box.right - box.left),
        up = (box.bottom - point.y) / (box.bottom - box.top);
      const value = down(self.y[0]) + up * (down(self.y[1]) - down(self.y[0]));
      return [self.x[0] + across * (self.x[1] - self.x[0]), logY ? 10 ** value : value];
    },
    path: (points) =>
      points
        .map(([a, b], i) => `${i ? "L" : "M"}${self.px(a).toFixed(2)} ${self.py(b).toFixed(2)}`)
        .join(""),
    axes(newX, newY) {
      [self.x, self.y] = [newX, newY];
      const parts = [];
      for (const value of names ? [] : ticks(...newX)) {
        const at = self.px(value);
        parts.push(
          make("line", { x1: at, x2: at, y1: box.top, y2: box.bottom }),
          make("text", { x: at, y: box.bottom + 15, "text-anchor": "middle" }, xText(value)),
        );
      }
      for (const [i, name] of (names ?? []).entries())
        parts.push(
          make("text", { x: self.px(i + 0.5), y: box.bottom + 15, "text-anchor": "middle" }, name),
        );
      for (const value of ticks(...newY, logY)) {
        const at = self.py(value);
        parts.push(
          make("line", { x1: box.left, x2: box.right, y1: at, y2: at }),
          make("text", { x: box.left - 6, y: at + 4, "text-anchor": "end" }, format(value)),
        );
      }
      const middle = (box.top + box.bottom) / 2;
      parts.push(
        make(
          "text",
          { x: (box.left + box.right) / 2, y: height - 8, "text-anchor": "middle" },
          xLabel,
        ),
        make(
          "text",
          { x: 13, y: middle, "text-anchor": "middle", transform: `rotate(-90 13 ${middle})` },
          yLabel,
        ),
      );
      frame.replaceChildren(...parts);
    },
  };
  self.axes(x, y);
  return self;
}

// The points of a curve that a plot has room for: a curve that leaves it ends there.
export const within = (figure, points) =>
  points.filter(([, y]) => y >= figure.y[0] && y <= figure.y[1]);

// Keep a list of elements as long as a list of data: `create()` makes one, `draw(element, datum,
// i)` updates it.
export function each(parent, kind, data, create, draw) {
  const present = [...parent.children].filter((child) => child.dataset.kind === kind);
  for (let i = present.length; i < data.length; i++) {
    const element = create(i);
    element.dataset.kind = kind;
    parent.append(element);
    present.push(element);
  }
  for (const extra of present.splice(data.length)) extra.remove();
  data.forEach((datum, i) => draw(present[i], datum, i));
}

// Steps of 0.05 that lead to 0 end at 0.
const exact = (value) => Math.round(value * 1e9) / 1e9;

// A handle in a plot: dragged by mouse, pen or finger, moved by the arrow keys. `move(x, y, event)`
// gets the new values.
export function handle(figure, { label, step, read, move, radius = 7 }) {
  const dot = make("circle", {
    r: radius,
    class: "vq-handle",
    tabindex: 0,
    role: "slider",
    "aria-label": label,
  });
  const keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  update(dot, {
    pointerdown(event) {
      if (event.button) return;
      dot.setPointerCapture(event.pointerId);
      event.preventDefault();
      dot.focus();
    },
    pointermove(event) {
      if (dot.hasPointerCapture(event.pointerId)) move(...figure.at(event), event);
    },
    keydown(event) {
      const way = keys[event.key];
      if (!way) return;
      event.preventDefault();
      const [x, y] = read(),
        size = event.shiftKey ? 10 * step : step;
      move(exact(x + way[0] * size), exact(y + way[1] * size), event);
    },
  });
  // the finger drags the handle, not the page
  dot.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
  return dot;
}

export function place(figure, dot, x, y, text) {
  update(dot, {
    cx: figure.px(x),
    cy: figure.py(y),
    "aria-valuenow": exact(y),
    "aria-valuemin": figure.y[0],
    "aria-valuemax": figure.y[1],
    "aria-valuetext": text,
  });
}

// Controls. Each returns an object whose `show(value)` makes the control display a value set
// elsewhere.

export function slider(parent, { label, min, max, step, unit = "", change }) {
  const input = make("input", { type: "range", min, max, step, "aria-label": label });
  const output = make("output", { "aria-live": "off" }); // the slider itself says its value
  input.addEventListener("input", () => change(Number(input.value)));
  parent.append(make("label", { class: "vq-control" }, make("span", {}, label), input, output));
  return {
    input,
    show(value) {
      input.value = value;
      output.textContent = `${format(value)}${unit && ` ${unit}`}`;
    },
  };
}

export function select(parent, { label, options, change }) {
  const input = make(
    "select",
    { "aria-label": label },
    ...options.map((name) => make("option", { value: name }, name)),
  );
  input.addEventListener("change", () => change(input.value));
  parent.append(make("label", { class: "vq-control" }, make("span", {}, label), input));
  return {
    input,
    show(value) {
      input.value = value;
    },
  };
}

export function button(parent, label, press) {
  const element = make("button", { type: "button" }, label);
  element.addEventListener("click", press);
  parent.append(element);
  return element;
}

// A row of named numbers that is read out when it has settled.
export function readout(parent, names) {
  const values = names.map((name) => make("output", { name, "aria-live": "off" })),
    said = make("p", { class: "vq-said", role: "status" });
  let waiting;
  parent.append(
    make(
      "dl",
      { class: "vq-readout" },
      ...names.map((name, i) => make("div", {}, make("dt", {}, name), make("dd", {}, values[i]))),
    ),
    said,
  );
  return {
    show(texts) {
      texts.forEach((text, i) => {
        values[i].textContent = text;
      });
      if (waiting) clearTimeout(waiting);
      waiting = setTimeout(
        () => {
          said.textContent = names.map((name, i) => `${name} ${texts[i]}`).join(", ");
        },
        waiting ? 700 : 0,
      );
    },
  };
}

// The three parts of an explorer's element, in the order that it is read in.
export function layout(el, label) {
  const [controls, numbers, plots] = ["vq-controls", "vq-numbers", "vq-plots"].map((name) =>
    make("div", { class: name }),
  );
  el.replaceChildren(
    make("section", { class: "vq", "aria-label": label }, controls, numbers, plots),
  );
  return { controls, numbers, plots };
}

// Call `draw` once per frame at most, however often a state changes; the first time at once.
export function onChange(model, names, draw) {
  let waiting = false;
  const later = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
  for (const name of names) model.on(`change:${name}`, later);
  draw();
}

export function assign(model, values) {
  for (const [name, value] of Object.entries(values)) model.set(name, value);
  model.save_changes();
}

// A model without a kernel: the part of anywidget's interface that explorers use.
export function pageModel(state) {
  const listeners = {};
  return {
    get: (name) => state[name],
    set(name, value) {
      state[name] = value;
      for (const listener of listeners[`change:${name}`] ?? []) listener();
    },
    save_changes() {},
    on(event, listener) {
      (listeners[event] ??= []).push(listener);
    },
  };
}
