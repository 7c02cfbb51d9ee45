// Reverse water-filling: `compute` is pure, everything after it draws.

// The water level at which the components' rates sum to `rate` bits; the largest variance when that
// is 0.
export function waterLevel(variances, rate) {
  const ordered = variances.filter((v) => v > 0).sort((a, b) => b - a);
  let sum = 0,
    level = ordered[0] ?? 0;
  for (const [i, variance] of ordered.entries()) {
    sum += Math.log2(variance);
    const candidate = 2 ** ((sum - 2 * rate) / (i + 1));
    if (candidate > variance) break;
    level = candidate;
  }
  return level;
}

export function compute({ variances, rate }) {
  const level = waterLevel(variances, rate);
  const distortions = variances.map((v) => Math.min(v, level));
  const rates = variances.map((v) => (v > level ? 0.5 * Math.log2(v / level) : 0));
  return {
    level,
    rates,
    distortions,
    distortion: distortions.reduce((a, b) => a + b, 0) / variances.length,
    codeVariances: variances.map((v) => Math.max(v - level, 0)),
  };
}

const LARGEST = 4,
  MOST_BITS = 24;

function render({ model, el }) {
  const { controls, numbers, plots } = layout(el, "Water-filling explorer");
  const count = model.get("variances").length,
    names = Array.from({ length: count }, (_, i) => String(i + 1));
  const setVariance = (i, value) => {
    const variances = [...model.get("variances")];
    variances[i] = Math.min(LARGEST, Math.max(0, value));
    assign(model, { variances });
  };
  const rate = slider(controls, {
    label: "Rate",
    min: 0,
    max: MOST_BITS,
    step: 0.1,
    unit: "bits",
    change: (value) => assign(model, { rate: value }),
  });
  const presets = {
    equal: () => 1,
    geometric: (i) => LARGEST * 0.5 ** i,
    "two strong": (i) => (i < 2 ? 3 : 0.25),
  };
  for (const [name, value] of Object.entries(presets))
    button(controls, name, () => assign(model, { variances: names.map((_, i) => value(i)) }));
  const shown = readout(numbers, [
    "Water level θ",
    "Distortion D",
    "D at equal bits",
    "Components with bits",
  ]);

  const water = plot(plots, {
    title: "Variances and water: drag the tops",
    x: [0, count],
    y: [0, LARGEST * 1.08],
    xLabel: "component",
    yLabel: "variance",
    names,
  });
  const bits = plot(plots, {
    title: "Where the bits go",
    x: [0, count],
    y: [0, 4],
    xLabel: "component",
    yLabel: "bits",
    names,
  });
  const curve = plot(plots, {
    title: "The limit D(R), and where you are",
    x: [0, MOST_BITS],
    y: [1e-3, 10],
    xLabel: "rate (bits per vector)",
    yLabel: "distortion per dimension",
    logY: true,
  });
  const codes = plot(plots, {
    title: "Codes that rate–distortion initialization draws",
    x: [-6, 6],
    y: [-6, 6],
    xLabel: "component 1",
    yLabel: "component 2",
    square: true,
  });

  const bars = make("g"),
    level = make("line", { class: "vq-limit" }),
    tops = make("g");
  water.layer.append(bars, level, tops);
  const limit = make("path", { class: "vq-curve" }),
    flat = make("path", { class: "vq-limit" }),
    here = make("circle", { r: 6, fill: "var(--vq-2)" });
  curve.layer.append(
    flat,
    limit,
    here,
    make(
      "text",
      { x: curve.box.right - 4, y: 26, "text-anchor": "end" },
      "dashed: the same bits for each",
    ),
  );
  const sigma = make("path", { class: "vq-limit" });
  codes.layer.append(
    sigma,
    make("text", { x: codes.box.left + 6, y: 26 }, "dashed: 2 σ of the source"),
  );

  const bar = () => make("rect", { rx: 1 });
  const drawBars = (figure, parent, kind, values, color, from = () => 0) =>
    each(parent, kind, values, bar, (rect, value, i) =>
      update(rect, {
        x: figure.px(i + 0.15),
        width: figure.px(0.7) - figure.px(0),
        fill: color,
        y: figure.py(Math.min(value, figure.y[1])),
        height: Math.max(0, figure.py(from(i)) - figure.py(Math.min(value, figure.y[1]))),
      }),
    );

  onChange(model, ["variances", "rate", "noise"], () => {
    const state = { variances: model.get("variances"), rate: model.get("rate") },
      result = compute(state);
    const even =
      state.variances.map((v) => v * 4 ** (-state.rate / count)).reduce((a, b) => a + b, 0) / count;
    rate.show(state.rate);
    shown.show([
      format(result.level),
      format(result.distortion),
      format(even),
      `${result.rates.filter((r) => r > 0).length} of ${count}`,
    ]);
    drawBars(water, bars, "signal", state.variances, "var(--vq-1)", (i) => result.distortions[i]);
    drawBars(water, bars, "noise", result.distortions, "var(--vq-6)");
    update(level, {
      x1: water.box.left,
      x2: water.box.right,
      y1: water.py(result.level),
      y2: water.py(result.level),
    });
    each(
      tops,
      "top",
      state.variances,
      (i) =>
        handle(water, {
          label: `Variance of component ${i + 1}`,
          step: 0.05,
          read: () => [0, model.get("variances")[i]],
          move: (_, value) => setVariance(i, value),
        }),
      (dot, value, i) =>
        place(water, dot, i + 0.5, value, `${format(value)}, ${format(result.rates[i])} bits`),
    );
    bits.axes([0, count], [0, Math.max(1, 1.1 * Math.max(...result.rates))]);
    drawBars(bits, bits.layer, "rate", result.rates, "var(--vq-1)");
    const grid = Array.from({ length: 97 }, (_, i) => (i * MOST_BITS) / 96),
      floor = (value) => Math.min(10, Math.max(1e-3, value));
    update(limit, {
      d: curve.path(
        within(
          curve,
          grid.map((r) => [r, compute({ ...state, rate: r }).distortion]),
        ),
      ),
    });
    const mean = state.variances.reduce((a, b) => a + b, 0) / count;
    update(flat, {
      d: curve.path(
        within(
          curve,
          grid.map((r) => [r, mean * 4 ** (-r / count)]),
        ),
      ),
    });
    update(here, { cx: curve.px(state.rate), cy: curve.py(floor(result.distortion)) });
    const [a, b] = result.codeVariances.map(Math.sqrt),
      circle = Array.from({ length: 65 }, (_, i) => (i * Math.PI) / 32);
    update(sigma, {
      d: codes.path(
        circle.map((t) => [
          2 * Math.sqrt(state.variances[0]) * Math.cos(t),
          2 * Math.sqrt(state.variances[1]) * Math.sin(t),
        ]),
      ),
    });
    each(
      codes.layer,
      "code",
      model.get("noise"),
      () => make("circle", { r: 2.5, fill: "var(--vq-1)", opacity: 0.75 }),
      (dot, [x, y]) => update(dot, { cx: codes.px(a * x), cy: codes.py(b * y) }),
    );
  });
}

const explorer = { render };
export default explorer;
