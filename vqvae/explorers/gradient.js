// Gradient microscope: what each estimator sends back through one quantized vector. `compute` is
// pure.

const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
const norm = (a) => Math.hypot(a[0], a[1]);
const scaled = (a, factor) => [a[0] * factor, a[1] * factor];
const plus = (a, b, factor = 1) => [a[0] + factor * b[0], a[1] + factor * b[1]];

// Unit vectors and ‖q‖/‖z‖, or null where there is no rotation from z to q.
function frame(z, q) {
  const tiny = 1.5e-154,
    [zNorm, qNorm] = [norm(z), norm(q)];
  if (!(zNorm > tiny && qNorm > tiny)) return null;
  const [zHat, qHat] = [scaled(z, 1 / zNorm), scaled(q, 1 / qNorm)],
    middle = plus(zHat, qHat);
  if (dot(middle, middle) <= 8 * Number.EPSILON) return null;
  return { zHat, qHat, r: scaled(middle, 1 / norm(middle)), scale: qNorm / zNorm };
}

// Rᵀg with R = I − 2rrᵀ + 2q̂ẑᵀ
const rotateBack = ({ zHat, qHat, r }, g) =>
  plus(plus(g, r, -2 * dot(r, g)), zHat, 2 * dot(qHat, g));

export const ESTIMATORS = {
  "straight-through": (z, q, g) => g,
  rotation(z, q, g) {
    const f = frame(z, q);
    return f ? scaled(rotateBack(f, g), f.scale) : g;
  },
  "rotation, unscaled": (z, q, g) => {
    const f = frame(z, q);
    return f ? rotateBack(f, g) : g;
  },
  "rotation, tangent": (z, q, g) => {
    const f = frame(z, q);
    if (!f) return g;
    const back = rotateBack(f, g);
    return scaled(plus(back, f.zHat, -dot(f.zHat, back)), f.scale);
  },
  projection(z, q, g) {
    const towards = plus(q, z, -1),
      length = norm(towards);
    return length > 0 ? scaled(towards, dot(towards, g) / length ** 2) : [0, 0];
  },
};

export function compute({ z, q, g }) {
  return {
    gradients: Object.fromEntries(
      Object.entries(ESTIMATORS).map(([name, back]) => [name, back(z, q, g)]),
    ),
    defined: frame(z, q) !== null,
    qg: dot(q, g),
    angle: (Math.atan2(Math.abs(z[0] * q[1] - z[1] * q[0]), dot(z, q)) * 180) / Math.PI,
  };
}

const REACH = 2.4,
  COLORS = ["--vq-1", "--vq-2", "--vq-3", "--vq-4", "--vq-5"];

// An arrow from a point, cut where it would leave the plot.
function arrow(figure, path, from, vector, color, width = 2) {
  const tip = plus(from, vector),
    a = [figure.px(from[0]), figure.py(from[1])],
    b = [figure.px(tip[0]), figure.py(tip[1])];
  const along = plus(b, a, -1),
    length = Math.max(norm(along), 1e-9),
    head = Math.min(9, length * 0.5),
    unit = scaled(along, 1 / length);
  const wing = (side) => plus(plus(b, unit, -head), [-unit[1], unit[0]], (side * head) / 2);
  const [left, right] = [wing(1), wing(-1)];
  update(path, {
    d: `M${a}L${b}M${left}L${b}L${right}`,
    fill: "none",
    stroke: `var(${color})`,
    "stroke-width": width,
  });
}

function render({ model, el }) {
  const { controls, numbers, plots } = layout(el, "Gradient microscope");
  const names = Object.keys(ESTIMATORS),
    inside = (v) => Math.max(-REACH, Math.min(REACH, v));
  const situations = {
    typical: [
      [1.4, 0.5],
      [1, 1.2],
    ],
    obtuse: [
      [1.2, 0.4],
      [-0.8, 1],
    ],
    "almost opposite": [
      [1.2, 0.4],
      [-1.2, -0.42],
    ],
    opposite: [
      [1.2, 0.4],
      [-1.2, -0.4],
    ],
    "z near zero": [
      [0.08, 0.03],
      [1, 1],
    ],
  };
  for (const [name, [z, q]] of Object.entries(situations))
    button(controls, name, () => assign(model, { z, q }));
  const field = select(controls, {
    label: "Field of",
    options: names,
    change: (estimator) => assign(model, { estimator }),
  });
  const shown = readout(numbers, ["Angle between z and q", "⟨q, g⟩", "Rotation defined"]);

  const range = {
    x: [-REACH, REACH],
    y: [-REACH, REACH],
    xLabel: "dimension 1",
    yLabel: "dimension 2",
    square: true,
    height: 360,
  };
  const main = plot(plots, { title: "Gradients that arrive at z: drag z, q and g", ...range });
  const plane = plot(plots, { title: "The same q and g, for z anywhere", ...range });
  const lines = make("g"),
    upstream = make("path"),
    dots = make("g"),
    labels = make("g");
  main.layer.append(lines, upstream, labels, dots);
  const points = ["z", "q", "g"].map((name) =>
    handle(main, {
      label: name === "g" ? "Upstream gradient g" : name,
      step: 0.05,
      read: () => (name === "g" ? plus(model.get("q"), model.get("g")) : model.get(name)),
      move: (x, y) => {
        const to = [inside(x), inside(y)],
          q = model.get("q");
        if (name === "z") assign(model, { z: to });
        else if (name === "g") assign(model, { g: plus(to, q, -1) });
        // the tip of g stays in reach
        else assign(model, { q: to, g: plus(plus(to, model.get("g")).map(inside), to, -1) });
      },
    }),
  );
  dots.append(...points);
  for (const [i, name] of names.entries()) lines.append(make("path", { "aria-label": name }));
  const table = make("tbody");
  plots.append(
    make(
      "figure",
      { class: "vq-wide" },
      make("figcaption", {}, "What each estimator sends back"),
      make(
        "table",
        {},
        make(
          "thead",
          {},
          make(
            "tr",
            {},
            ...["estimator", "gradient at z", "length", "⟨z, ∇z⟩"].map((head) =>
              make("th", { scope: "col" }, head),
            ),
          ),
        ),
        table,
      ),
    ),
  );
  for (const [i, name] of names.entries())
    table.append(
      make(
        "tr",
        {},
        make(
          "th",
          { scope: "row" },
          make("span", { class: "vq-key", style: `background: var(${COLORS[i]})` }),
          name,
        ),
        ...[0, 1, 2].map(() => make("td")),
      ),
    );
  const grid = Array.from({ length: 169 }, (_, i) => [
    ((i % 13) - 6) * 0.38,
    (Math.floor(i / 13) - 6) * 0.38,
  ]);
  const here = make("g");
  plane.layer.append(here);

  onChange(model, ["z", "q", "g", "estimator"], () => {
    const [z, q, g, estimator] = ["z", "q", "g", "estimator"].map((name) => model.get(name)),
      result = compute({ z, q, g });
    field.show(estimator);
    shown.show([
      `${format(result.angle)}°`,
      format(result.qg),
      result.defined ? "yes" : "no: straight-through",
    ]);
    names.forEach((name, i) => {
      const gradient = result.gradients[name],
        cells = table.children[i].children;
      arrow(main, lines.children[i], z, gradient, COLORS[i], 2.5);
      cells[1].textContent = `(${format(gradient[0])}, ${format(gradient[1])})`;
      cells[2].textContent = format(norm(gradient));
      cells[3].textContent = format(dot(z, gradient));
    });
    arrow(main, upstream, q, g, "--vq-ink", 2.5);
    const at = { z, q, g: plus(q, g) };
    ["z", "q", "g"].forEach((name, i) =>
      place(main, points[i], ...at[name], `(${format(at[name][0])}, ${format(at[name][1])})`),
    );
    each(
      labels,
      "label",
      ["z", "q", "g"],
      () => make("text", { class: "vq-label" }),
      (text, name) => {
        update(text, { x: main.px(at[name][0]) + 10, y: main.py(at[name][1]) - 9 });
        text.textContent = name;
      },
    );
    each(
      plane.layer,
      "arrow",
      grid,
      () => make("path"),
      (path, point) => {
        const back = ESTIMATORS[estimator](point, q, g),
          long = norm(back),
          most = 0.34;
        arrow(
          plane,
          path,
          point,
          long > 0 ? scaled(back, (most * Math.tanh(long / norm(g) / 1.5 || 0)) / long) : back,
          COLORS[names.indexOf(estimator)],
          1.4,
        );
      },
    );
    each(
      here,
      "place",
      [
        ["q", q],
        ["z", z],
      ],
      () =>
        make(
          "g",
          {},
          make("circle", { r: 4, fill: "var(--vq-ink)" }),
          make("text", { class: "vq-label" }),
        ),
      (group, [name, point]) => {
        update(group.children[0], { cx: plane.px(point[0]), cy: plane.py(point[1]) });
        update(group.children[1], { x: plane.px(point[0]) + 7, y: plane.py(point[1]) - 7 });
        group.children[1].textContent = name;
      },
    );
  });
}

const explorer = { render };
export default explorer;
