// Finite scalar quantization: bounds, bins and their probabilities for a Gaussian input. `compute`
// is pure.

// The error function to about 1e-14: a series near zero, a continued fraction far from it.
export function erf(x) {
  const size = Math.abs(x);
  if (size < 3) {
    let term = x,
      sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum) && n < 200; n++) {
      term *= (-x * x) / n;
      sum += term / (2 * n + 1);
    }
    return (2 / Math.sqrt(Math.PI)) * sum;
  }
  let tail = 0;
  for (let n = 60; n > 0; n--) tail = n / 2 / (size + tail);
  return Math.sign(x) * (1 - Math.exp(-size * size) / (Math.sqrt(Math.PI) * (size + tail)));
}

const normalCdf = (x) =>
  x === Infinity ? 1 : x === -Infinity ? 0 : 0.5 * (1 + erf(x / Math.SQRT2));

// Half width, offset and shift of a coordinate with L levels.
export function constants(level) {
  const steps = level - 1,
    half = (steps - Math.min(0.1, 1e-3 * steps)) / 2,
    offset = level % 2 ? 0 : 0.5;
  return { half, offset, shift: level > 2 ? Math.atanh(offset / half) : 0 };
}

export function bound(z, level) {
  const { half, offset, shift } = constants(level);
  return half * Math.tanh(z + shift) - offset;
}

// One coordinate: its integer codes, the edges between their bins, and the bins' probabilities for
// N(mean, scale²).
export function coordinate(level, mean, scale) {
  const { half, offset, shift } = constants(level),
    low = Math.floor(level / 2);
  const codes = Array.from({ length: level }, (_, i) => i - low);
  const edges = codes.slice(0, -1).map((code) => Math.atanh((code + 0.5 + offset) / half) - shift);
  const below = [-Infinity, ...edges, Infinity].map((edge) => normalCdf((edge - mean) / scale));
  const probabilities = codes.map((_, i) => Math.max(0, below[i + 1] - below[i]));
  const entropy = probabilities.reduce((sum, p) => sum - (p > 0 ? p * Math.log2(p) : 0), 0);
  return { codes, edges, probabilities, entropy, values: codes.map((code) => code / low) };
}

const SAMPLES = 10000;

export function compute({ levels, mean, scale }) {
  const coordinates = levels.map((level) => coordinate(level, mean, scale));
  let joint = [1];
  for (const { probabilities } of coordinates)
    joint = probabilities.flatMap((p) => joint.map((q) => p * q)); // first digit fastest
  const entropy = coordinates.reduce((sum, c) => sum + c.entropy, 0);
  return {
    coordinates,
    joint,
    entropy,
    perplexity: 2 ** entropy,
    codebookSize: joint.length,
    seen: joint.reduce(
      (sum, p) => sum - Math.expm1(SAMPLES * Math.log1p(-Math.min(p, 1 - 1e-16))),
      0,
    ),
  };
}

const REACH = 4,
  MOST_LEVELS = 16;

function render({ model, el }) {
  const { controls, numbers, plots } = layout(el, "Finite scalar quantization explorer");
  const setLevel = (i) => (value) =>
    assign(model, { levels: model.get("levels").map((old, j) => (j === i ? value : old)) });
  const level = [0, 1].map((i) =>
    slider(controls, {
      label: `Levels of dimension ${i + 1}`,
      min: 2,
      max: MOST_LEVELS,
      step: 1,
      change: setLevel(i),
    }),
  );
  const scale = slider(controls, {
    label: "Scale σ of the input",
    min: 0.1,
    max: 3,
    step: 0.05,
    change: (value) => assign(model, { scale: value }),
  });
  const mean = slider(controls, {
    label: "Mean of the input",
    min: -2,
    max: 2,
    step: 0.05,
    change: (value) => assign(model, { mean: value }),
  });
  const shown = readout(numbers, [
    "Codes",
    "Rate log₂ n",
    "Entropy",
    "Perplexity",
    `Seen in ${SAMPLES} samples`,
  ]);

  const curve = plot(plots, {
    title: "Dimension 1: squashed, then rounded",
    x: [-REACH, REACH],
    y: [-2, 2],
    xLabel: "latent z",
    yLabel: "bounded value",
  });
  const bins = plot(plots, {
    title: "Dimension 1: how probable each level is",
    x: [0, 1],
    y: [0, 1],
    xLabel: "code",
    yLabel: "probability",
    names: [],
  });
  const plane = plot(plots, {
    title: "Cells, and 1, 2, 3 σ of the input",
    x: [-REACH, REACH],
    y: [-REACH, REACH],
    xLabel: "dimension 1",
    yLabel: "dimension 2",
    square: true,
    height: 340,
  });
  const book = plot(plots, {
    title: "The codebook; areas are probabilities",
    x: [-1.25, 1.25],
    y: [-1.25, 1.25],
    xLabel: "dimension 1",
    yLabel: "dimension 2",
    square: true,
    height: 340,
  });
  const step = make("path", { fill: "none", stroke: "var(--vq-2)", "stroke-width": 2 }),
    squash = make("path", { class: "vq-curve" });
  curve.layer.append(step, squash);
  const handleMean = handle(plane, {
    label: "Mean in the plane",
    step: 0.05,
    read: () => [model.get("mean"), model.get("mean")],
    move: (x, y) =>
      assign(model, { mean: Math.max(-2, Math.min(2, Math.round(10 * (x + y)) / 20)) }),
  });
  const cells = make("g"),
    rings = make("g");
  plane.layer.append(cells, rings, handleMean);

  onChange(model, ["levels", "mean", "scale"], () => {
    const state = {
        levels: model.get("levels"),
        mean: model.get("mean"),
        scale: model.get("scale"),
      },
      result = compute(state);
    const [first, second] = result.coordinates,
      size = state.levels[0];
    level.forEach((control, i) => control.show(state.levels[i]));
    scale.show(state.scale);
    mean.show(state.mean);
    shown.show([
      String(result.codebookSize),
      `${format(Math.log2(result.codebookSize))} bits`,
      `${format(result.entropy)} bits`,
      format(result.perplexity),
      format(result.seen),
    ]);

    const half = Math.floor(size / 2),
      grid = Array.from({ length: 401 }, (_, i) => -REACH + (i * REACH) / 200);
    curve.axes([-REACH, REACH], [-half - 0.7, half + 0.7]);
    update(squash, { d: curve.path(grid.map((z) => [z, bound(z, size)])) });
    const stops = [
      -REACH,
      ...first.edges.map((edge) => Math.max(-REACH, Math.min(REACH, edge))),
      REACH,
    ];
    update(step, {
      d: curve.path(
        first.codes.flatMap((code, i) => [
          [stops[i], code],
          [stops[i + 1], code],
        ]),
      ),
    });

    const most = Math.max(...first.probabilities);
    bins.axes([0, size], [0, Math.min(1, 1.15 * most)]);
    each(
      bins.layer,
      "bar",
      first.probabilities,
      () => make("rect", { fill: "var(--vq-1)", rx: 1 }),
      (bar, p, i) =>
        update(bar, {
          x: bins.px(i + 0.12),
          width: bins.px(0.76) - bins.px(0),
          y: bins.py(p),
          height: bins.box.bottom - bins.py(p),
        }),
    );
    each(
      bins.layer,
      "name",
      first.codes,
      () => make("text", { "text-anchor": "middle" }),
      (text, code, i) => {
        update(text, { x: bins.px(i + 0.5), y: bins.box.bottom + 15 });
        text.textContent = size > 10 && i % 2 ? "" : format(code);
      },
    );

    const visible = (edge) => Math.abs(edge) < REACH;
    each(
      cells,
      "column",
      first.edges.filter(visible),
      () => make("line", { stroke: "var(--vq-1)" }),
      (line, edge) =>
        update(line, {
          x1: plane.px(edge),
          x2: plane.px(edge),
          y1: plane.box.top,
          y2: plane.box.bottom,
        }),
    );
    each(
      cells,
      "row",
      second.edges.filter(visible),
      () => make("line", { stroke: "var(--vq-1)" }),
      (line, edge) =>
        update(line, {
          y1: plane.py(edge),
          y2: plane.py(edge),
          x1: plane.box.left,
          x2: plane.box.right,
        }),
    );
    const pixels = plane.px(1) - plane.px(0);
    each(
      rings,
      "ring",
      [1, 2, 3],
      () => make("circle", { class: "vq-limit" }),
      (ring, k) =>
        update(ring, {
          cx: plane.px(state.mean),
          cy: plane.py(state.mean),
          r: k * state.scale * pixels,
        }),
    );
    place(plane, handleMean, state.mean, state.mean, format(state.mean));

    const area = (book.px(2) - book.px(0)) ** 2 / 6;
    each(
      book.layer,
      "code",
      result.joint,
      () => make("circle", { fill: "var(--vq-1)", "fill-opacity": 0.8 }),
      (dot, p, i) =>
        update(dot, {
          cx: book.px(first.values[i % size]),
          cy: book.py(second.values[Math.floor(i / size)]),
          r: Math.max(1, Math.sqrt((area * p) / Math.PI)),
        }),
    );
  });
}

const explorer = { render };
export default explorer;
