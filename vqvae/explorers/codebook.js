// Codebook explorer: codewords in the plane, their cells, and the point on the rate-distortion
// plane. `compute` is pure.

// The samples of a source. A Gaussian is given at variance 1 and stretched here.
export function pointsOf({ source, samples, deviation, angle }) {
  if (source !== "Gaussian") return samples[source];
  const turn = (angle * Math.PI) / 180,
    [c, s] = [Math.cos(turn), Math.sin(turn)];
  return samples.Gaussian.map(([a, b]) => [c * a - s * deviation * b, s * a + c * deviation * b]);
}

export const owners = (points, codebook) => points.map((point) => nearest(point, codebook));

export function measure(points, codebook) {
  const owner = owners(points, codebook),
    counts = codebook.map(() => 0);
  let error = 0;
  points.forEach(([x, y], j) => {
    const [a, b] = codebook[owner[j]];
    counts[owner[j]] += 1;
    error += (x - a) ** 2 + (y - b) ** 2;
  });
  return { owners: owner, counts, distortion: error / points.length / 2, ...use(counts) };
}

export const compute = (state) => measure(pointsOf(state), state.codebook);

// One step of Lloyd's algorithm: every codeword to the mean of its samples; one without samples
// stays.
export function lloydStep(points, codebook) {
  const sums = codebook.map(() => [0, 0, 0]);
  owners(points, codebook).forEach((owner, j) => {
    sums[owner][0] += points[j][0];
    sums[owner][1] += points[j][1];
    sums[owner][2] += 1;
  });
  return codebook.map((code, i) =>
    sums[i][2] ? [sums[i][0] / sums[i][2], sums[i][1] / sums[i][2]] : code,
  );
}

export function covariance(points) {
  const mean = [0, 1].map((axis) => points.reduce((sum, p) => sum + p[axis], 0) / points.length);
  const entry = (i, j) =>
    points.reduce((sum, p) => sum + (p[i] - mean[i]) * (p[j] - mean[j]), 0) / points.length;
  const [a, b, d] = [entry(0, 0), entry(0, 1), entry(1, 1)],
    middle = (a + d) / 2,
    radius = Math.hypot((a - d) / 2, b);
  const turn = 0.5 * Math.atan2(2 * b, a - d);
  return {
    mean,
    variances: [middle + radius, Math.max(0, middle - radius)],
    axis: [Math.cos(turn), Math.sin(turn)],
  };
}

// Limits and laws for a Gaussian with variances λ at `bits` per vector: squared error per
// dimension.

export function limit([a, b], bits) {
  const both = Math.sqrt(a * b) * 2 ** -bits; // the water level if both components get bits
  return both <= b ? both : (a * 4 ** -bits + b) / 2;
}

export const highResolution = ([a, b], bits) =>
  (5 / (36 * Math.sqrt(3))) * 8 * Math.PI * Math.sqrt(a * b) * 2 ** -bits;

// The best pair of Lloyd-Max quantizers on the principal axes with at most 2^bits codes;
// `scalar[L]` is the distortion with L levels.
export function scalarPair([a, b], codes, scalar) {
  let best = Infinity;
  for (let first = 1; first <= codes && first < scalar.length; first++)
    best = Math.min(
      best,
      (a * scalar[first] + b * scalar[Math.min(Math.floor(codes / first), scalar.length - 1)]) / 2,
    );
  return best;
}

// Random numbers from a seed, the same in every browser (mulberry32), and normal ones from pairs of
// them.
function random(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return {
    uniform,
    normal: () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()),
  };
}

export const INITIALIZERS = {
  uniform: (points, n, { uniform }) =>
    Array.from({ length: n }, () => [(2 * uniform() - 1) / n, (2 * uniform() - 1) / n]),
  sample(points, n, { uniform }) {
    const rest = [...points];
    return Array.from({ length: n }, () => rest.splice(Math.floor(uniform() * rest.length), 1)[0]);
  },
  "k-means"(points, n, { uniform }) {
    // k-means++, then Lloyd
    let codebook = [points[Math.floor(uniform() * points.length)]];
    const nearest = points.map(() => Infinity);
    while (codebook.length < n) {
      const [a, b] = codebook.at(-1);
      points.forEach(([x, y], j) => {
        nearest[j] = Math.min(nearest[j], (x - a) ** 2 + (y - b) ** 2);
      });
      let left = uniform() * nearest.reduce((p, q) => p + q, 0);
      codebook.push(
        points[
          Math.max(
            0,
            nearest.findIndex((d) => (left -= d) < 0),
          )
        ],
      );
    }
    for (let i = 0; i < 60; i++) codebook = lloydStep(points, codebook);
    return codebook;
  },
  "rate–distortion"(points, n, { normal }) {
    const {
        mean,
        variances: [a, b],
        axis: [c, s],
      } = covariance(points),
      level = Math.sqrt(a * b) / n <= b ? Math.sqrt(a * b) / n : a / n ** 2;
    const spread = [a, b].map((v) => Math.sqrt(Math.max(0, v - level)));
    return Array.from({ length: n }, () => {
      const [u, v] = [normal() * spread[0], normal() * spread[1]];
      return [mean[0] + c * u - s * v, mean[1] + s * u + c * v];
    });
  },
};

// The grid of finite scalar quantization with about n codes, and the corners of the sign quantizer,
// at the scale that suits the samples best.
export function implicitCodebook(kind, points, n) {
  const first = Math.max(2, Math.round(Math.sqrt(n))),
    levels = kind === "sign" ? [2, 2] : [first, Math.max(2, Math.round(n / first))];
  const axis = (level) =>
    Array.from({ length: level }, (_, i) =>
      kind === "sign" ? 2 * i - 1 : (i - Math.floor(level / 2)) / Math.floor(level / 2),
    );
  const grid = axis(levels[1]).flatMap((y) => axis(levels[0]).map((x) => [x, y]));
  const at = (scale) => grid.map(([x, y]) => [scale * x, scale * y]);
  let best = { distortion: Infinity };
  for (let scale = 0.1; scale < 3.2; scale *= 1.05) {
    const distortion = measure(points, at(scale)).distortion;
    if (distortion < best.distortion)
      best = { distortion, codebook: at(scale), bits: Math.log2(grid.length) };
  }
  return best;
}

// The cell of every codeword inside the square [-reach, reach]²: the square, cut by one bisector
// after the other.
export function cells(codebook, reach) {
  return codebook.map(([a, b], i) => {
    let polygon = [
      [-reach, -reach],
      [reach, -reach],
      [reach, reach],
      [-reach, reach],
    ];
    for (let j = 0; j < codebook.length && polygon.length; j++) {
      const [c, d] = codebook[j],
        nx = c - a,
        ny = d - b;
      if (j === i || (nx === 0 && ny === 0)) {
        if (j < i && nx === 0 && ny === 0) polygon = [];
        continue;
      }
      const middle = (nx * (a + c) + ny * (b + d)) / 2,
        side = ([x, y]) => nx * x + ny * y - middle;
      const kept = [];
      polygon.forEach((point, k) => {
        const next = polygon[(k + 1) % polygon.length],
          [here, there] = [side(point), side(next)];
        if (here <= 0) kept.push(point);
        if (here * there < 0) {
          const t = here / (here - there);
          kept.push([point[0] + t * (next[0] - point[0]), point[1] + t * (next[1] - point[1])]);
        }
      });
      polygon = kept;
    }
    return polygon;
  });
}

const REACH = 3.2,
  MOST_CODES = 64,
  NAMES = ["source", "deviation", "angle", "codebook", "overlay", "samples"];

function render({ model, el }) {
  const { controls, numbers, plots } = layout(el, "Codebook explorer");
  const state = () => Object.fromEntries(NAMES.map((name) => [name, model.get(name)]));
  const clip = (v) => Math.max(-REACH, Math.min(REACH, v));
  const initialize = (n, initializer = model.get("initializer")) => {
    const seed = model.get("seed") + 1,
      points = pointsOf(state()),
      size = Math.min(n, points.length);
    assign(model, {
      seed,
      initializer,
      codebook: INITIALIZERS[initializer](points, size, random(seed)),
    });
  };
  const source = select(controls, {
    label: "Source",
    options: Object.keys(model.get("samples")),
    change: (value) => {
      assign(model, { source: value });
      initialize(model.get("codebook").length);
    },
  });
  const deviation = slider(controls, {
    label: "Axis ratio",
    min: 0.05,
    max: 1,
    step: 0.01,
    change: (value) => assign(model, { deviation: value }),
  });
  const angle = slider(controls, {
    label: "Turned by",
    min: 0,
    max: 180,
    step: 1,
    unit: "°",
    change: (value) => assign(model, { angle: value }),
  });
  const size = slider(controls, {
    label: "Codes",
    min: 1,
    max: MOST_CODES,
    step: 1,
    change: (value) => initialize(value),
  });
  const start = select(controls, {
    label: "Start",
    options: Object.keys(INITIALIZERS),
    change: (value) => initialize(model.get("codebook").length, value),
  });
  button(controls, "new start", () => initialize(model.get("codebook").length));
  const steps = (count) => () => {
    let codebook = model.get("codebook");
    for (let i = 0; i < count; i++) codebook = lloydStep(pointsOf(state()), codebook);
    assign(model, { codebook });
  };
  button(controls, "Lloyd step", steps(1));
  button(controls, "20 Lloyd steps", steps(20));
  const overlay = select(controls, {
    label: "Compare with",
    options: ["nothing", "FSQ", "sign"],
    change: (value) => assign(model, { overlay: value }),
  });
  const shown = readout(numbers, [
    "Distortion",
    "Rate log₂ n",
    "Entropy",
    "Perplexity",
    "Dead codes",
  ]);

  const plane = plot(plots, {
    title: "Codewords and their cells: drag them",
    x: [-REACH, REACH],
    y: [-REACH, REACH],
    xLabel: "dimension 1",
    yLabel: "dimension 2",
    square: true,
    width: 400,
    height: 400,
  });
  const curve = plot(plots, {
    title: "Rate and distortion",
    x: [0, 3.2],
    y: [1e-3, 2],
    xLabel: "rate (bits per dimension)",
    yLabel: "distortion per dimension",
    logY: true,
    width: 400,
    height: 400,
  });
  const [regions, cloud, marks, handles] = ["g", "path", "g", "g"].map((tag) => make(tag));
  update(cloud, {
    fill: "none",
    stroke: "var(--vq-ink)",
    "stroke-opacity": 0.4,
    "stroke-width": 2.2,
    "stroke-linecap": "round",
  });
  plane.layer.append(regions, cloud, marks, handles);
  const [bound, zador, staircase] = [
    ["vq-curve", "var(--vq-1)"],
    ["vq-limit", "var(--vq-4)"],
    ["vq-curve", "var(--vq-3)"],
  ].map(([name, stroke]) => make("path", { class: name, style: `stroke: ${stroke}` }));
  const ours = make("circle", { r: 6, fill: "var(--vq-2)" }),
    coded = make("circle", { r: 5, fill: "none", stroke: "var(--vq-2)", "stroke-width": 2 }),
    theirs = make("rect", { width: 10, height: 10, fill: "var(--vq-5)" });
  curve.layer.append(bound, zador, staircase, ours, coded, theirs);
  const legend = [
    ["━ R(D), Gaussian", "var(--vq-1)"],
    ["━ high resolution, 2-D", "var(--vq-4)"],
    ["━ scalar Lloyd–Max", "var(--vq-3)"],
    ["● this codebook  ○ entropy-coded", "var(--vq-2)"],
    ["■ compared with", "var(--vq-5)"],
  ];
  const entries = legend.map(([name, color], i) =>
    make(
      "text",
      {
        x: curve.box.left + 10,
        y: curve.box.bottom - 83 + 17 * i,
        class: "vq-label",
        style: "font-size: 12px",
      },
      ...name
        .split(/([━●○■])/)
        .map((part) =>
          /[━●○■]/.test(part) ? make("tspan", { style: `fill: ${color}` }, part) : part,
        ),
    ),
  );
  curve.layer.append(...entries);
  const palette = ["--vq-1", "--vq-2", "--vq-3", "--vq-4", "--vq-5", "--vq-6"];
  const grid = Array.from({ length: 65 }, (_, i) => (i * 6.4) / 64),
    floor = (d) => Math.min(2, Math.max(1e-3, d));
  let drawn = {}; // what the cloud and the curves were drawn for

  onChange(model, NAMES, () => {
    const now = state(),
      gaussian = now.source === "Gaussian",
      n = now.codebook.length;
    const moved = ["source", "deviation", "angle", "samples"].some(
      (name) => drawn[name] !== now[name],
    );
    const points = moved ? pointsOf(now) : drawn.points,
      moments = moved ? covariance(points) : drawn.moments;
    const result = measure(points, now.codebook),
      bits = Math.log2(n);
    source.show(now.source);
    size.show(n);
    start.show(model.get("initializer"));
    overlay.show(now.overlay);
    deviation.show(now.deviation);
    angle.show(now.angle);
    deviation.input.disabled = angle.input.disabled = !gaussian;
    shown.show([
      format(result.distortion),
      `${format(bits)} bits`,
      `${format(result.entropy)} bits`,
      format(result.perplexity),
      `${result.dead} of ${n}`,
    ]);

    const outlines = cells(now.codebook, REACH);
    each(
      regions,
      "cell",
      outlines,
      () => make("path", { stroke: "var(--vq-soft)", "stroke-width": 0.8, "fill-opacity": 0.28 }),
      (path, outline, i) =>
        update(path, {
          d: outline.length ? `${plane.path(outline)}Z` : "",
          fill: `var(${palette[i % 6]})`,
        }),
    );
    each(
      handles,
      "code",
      now.codebook,
      (i) =>
        handle(plane, {
          label: `Codeword ${i + 1}`,
          step: 0.05,
          radius: 6,
          read: () => model.get("codebook")[i],
          move: (x, y) =>
            assign(model, {
              codebook: model
                .get("codebook")
                .map((code, j) => (j === i ? [clip(x), clip(y)] : code)),
            }),
        }),
      (dot, [x, y], i) => {
        place(
          plane,
          dot,
          clip(x),
          clip(y),
          `(${format(x)}, ${format(y)}), ${result.counts[i]} samples`,
        );
        update(dot, { "fill-opacity": result.counts[i] ? 1 : 0.25 });
      },
    );

    if (moved) {
      update(cloud, {
        d: points
          .filter(([x, y]) => Math.abs(x) < REACH && Math.abs(y) < REACH)
          .map(([x, y]) => `M${plane.px(x).toFixed(1)} ${plane.py(y).toFixed(1)}h0`)
          .join(""),
      });
      update(bound, {
        d: curve.path(
          within(
            curve,
            grid.map((r) => [r / 2, limit(moments.variances, r)]),
          ),
        ),
      });
      update(zador, {
        d: curve.path(
          within(
            curve,
            grid.map((r) => [r / 2, highResolution(moments.variances, r)]),
          ),
        ),
      });
      const codes = Array.from({ length: MOST_CODES }, (_, i) => i + 1),
        scalar = model.get("scalar");
      update(staircase, {
        d: curve.path(
          within(
            curve,
            codes.map((c) => [Math.log2(c) / 2, scalarPair(moments.variances, c, scalar)]),
          ),
        ),
      });
    }
    const other =
      now.overlay === "nothing"
        ? null
        : !moved && drawn.overlay === now.overlay && drawn.size === n
          ? drawn.other
          : implicitCodebook(now.overlay, points, n);
    each(
      marks,
      "implicit",
      other?.codebook ?? [],
      () => make("rect", { width: 8, height: 8, fill: "var(--vq-5)", stroke: "var(--vq-ink)" }),
      (mark, [x, y]) => update(mark, { x: plane.px(clip(x)) - 4, y: plane.py(clip(y)) - 4 }),
    );
    update(entries.at(-1), { visibility: other ? "visible" : "hidden" });
    update(theirs, {
      visibility: other ? "visible" : "hidden",
      ...(other && { x: curve.px(other.bits / 2) - 5, y: curve.py(floor(other.distortion)) - 5 }),
    });
    update(ours, { cx: curve.px(bits / 2), cy: curve.py(floor(result.distortion)) });
    update(coded, { cx: curve.px(result.entropy / 2), cy: curve.py(floor(result.distortion)) });
    drawn = { ...now, points, moments, size: n, other };
  });
}

const explorer = { render };
export default explorer;
