// Gumbel-softmax: samples on the simplex of three codes. `compute` is pure; the noise comes from
// Python.

export function softmax(values) {
  const most = Math.max(...values),
    weights = values.map((v) => Math.exp(v - most)),
    sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((w) => w / sum);
}

export function compute({ logits, temperature, noise }) {
  const probabilities = softmax(logits),
    n = logits.length;
  const scores = noise.map((row) => row.map((g, i) => g + logits[i]));
  const samples = scores.map((row) => softmax(row.map((score) => score / temperature)));
  const choices = scores.map((row) => row.indexOf(Math.max(...row)));
  const mean = (rows) =>
    logits.map((_, i) => rows.reduce((sum, row) => sum + row[i], 0) / rows.length);
  return {
    probabilities,
    samples,
    choices,
    kl: Math.max(
      0,
      probabilities.reduce((sum, p) => sum + (p > 0 ? p * Math.log(n * p) : 0), 0),
    ),
    soft: mean(samples),
    hard: mean(choices.map((choice) => logits.map((_, i) => (i === choice ? 1 : 0)))),
    gap:
      samples.reduce(
        (sum, y, j) => sum + y.reduce((s, v, i) => s + (v - (i === choices[j] ? 1 : 0)) ** 2, 0),
        0,
      ) / samples.length,
  };
}

const REACH = 4,
  CORNERS = [
    [0, 0],
    [1, 0],
    [0.5, Math.sqrt(3) / 2],
  ],
  COLORS = ["--vq-1", "--vq-2", "--vq-3"],
  KINDS = ["--vq-6", "--vq-4", "--vq-5"]; // of the codes; of what is said about them
const onSimplex = (y) =>
  [0, 1].map((axis) => y.reduce((sum, v, i) => sum + v * CORNERS[i][axis], 0));

function render({ model, el }) {
  const { controls, numbers, plots } = layout(el, "Gumbel-softmax explorer");
  // the slider is logarithmic: temperatures from 0.05 to 10
  const temperature = slider(controls, {
    label: "Temperature τ",
    min: -3,
    max: 2.32,
    step: 0.02,
    change: (value) =>
      assign(model, {
        temperature: Math.min(10, Math.max(0.05, Number(Math.exp(value).toPrecision(3)))),
      }),
  });
  const hard = button(controls, "hard samples", () => assign(model, { hard: !model.get("hard") }));
  button(controls, "equal logits", () => assign(model, { logits: [0, 0, 0] }));
  button(controls, "one favourite", () => assign(model, { logits: [3, 0, -1] }));
  const shown = readout(numbers, ["KL to uniform", "Most likely code", "Mean ‖soft − hard‖²"]);

  const bars = plot(plots, {
    title: "Logits: drag the ends",
    x: [0, 3],
    y: [-REACH, REACH],
    xLabel: "code",
    yLabel: "logit",
    names: ["1", "2", "3"],
  });
  const simplex = plot(plots, {
    title: "Samples on the simplex",
    x: [-0.12, 1.12],
    y: [-0.12, 1.02],
    xLabel: "",
    yLabel: "",
    square: true,
  });
  simplex.axes = () => {};
  simplex.svg.querySelector(".vq-axes").replaceChildren();
  const shares = plot(plots, {
    title: "Probabilities and samples",
    x: [0, 3],
    y: [0, 1.15],
    xLabel: "code",
    yLabel: "probability",
    names: ["1", "2", "3"],
  });

  const columns = make("g"),
    ends = make("g"),
    zero = make("line", {
      stroke: "var(--vq-soft)",
      x1: bars.box.left,
      x2: bars.box.right,
      y1: bars.py(0),
      y2: bars.py(0),
    });
  bars.layer.append(columns, zero, ends);
  const corner = CORNERS.map(([x, y]) => `${simplex.px(x)},${simplex.py(y)}`).join(" ");
  const points = make("g");
  simplex.layer.append(
    make("polygon", {
      points: corner,
      fill: "none",
      stroke: "var(--vq-soft)",
      "stroke-width": 1.5,
    }),
    points,
  );
  CORNERS.forEach(([x, y], i) =>
    simplex.layer.append(
      make(
        "text",
        {
          class: "vq-label",
          "text-anchor": "middle",
          x: simplex.px(x),
          y: simplex.py(y) + (i < 2 ? 20 : -9),
        },
        `code ${i + 1}`,
      ),
    ),
  );
  const average = make("circle", {
    r: 6,
    fill: "var(--vq-ink)",
    stroke: "var(--vq-page)",
    "stroke-width": 2,
  });
  simplex.layer.append(
    average,
    make(
      "text",
      { class: "vq-label", "text-anchor": "middle", x: simplex.px(0.5), y: simplex.py(0) + 46 },
      "● mean of the samples",
    ),
  );
  const legend = ["softmax", "soft mean", "hard share"];
  shares.layer.append(
    ...legend.map((name, i) =>
      make(
        "g",
        {},
        make("rect", {
          x: shares.box.left + 8 + 92 * i,
          y: 14,
          width: 11,
          height: 11,
          fill: `var(${KINDS[i]})`,
        }),
        make("text", { x: shares.box.left + 23 + 92 * i, y: 24 }, name),
      ),
    ),
  );

  onChange(model, ["logits", "temperature", "hard", "noise"], () => {
    const state = {
        logits: model.get("logits"),
        temperature: model.get("temperature"),
        noise: model.get("noise"),
      },
      result = compute(state),
      isHard = model.get("hard");
    temperature.show(Math.log(state.temperature));
    temperature.input.nextElementSibling.textContent = format(state.temperature);
    update(temperature.input, { "aria-valuetext": format(state.temperature) });
    update(hard, { "aria-pressed": String(isHard) });
    shown.show([
      `${format(result.kl)} nats`,
      `${1 + result.probabilities.indexOf(Math.max(...result.probabilities))}`,
      format(result.gap),
    ]);
    each(
      columns,
      "bar",
      state.logits,
      () => make("rect"),
      (bar, value, i) =>
        update(bar, {
          x: bars.px(i + 0.25),
          width: bars.px(0.5) - bars.px(0),
          fill: "var(--vq-1)",
          y: bars.py(Math.max(value, 0)),
          height: Math.abs(bars.py(value) - bars.py(0)),
        }),
    );
    each(
      ends,
      "end",
      state.logits,
      (i) =>
        handle(bars, {
          label: `Logit of code ${i + 1}`,
          step: 0.1,
          read: () => [0, model.get("logits")[i]],
          move: (_, value) =>
            assign(model, {
              logits: model
                .get("logits")
                .map((old, j) =>
                  j === i ? Math.max(-REACH, Math.min(REACH, Math.round(value * 100) / 100)) : old,
                ),
            }),
        }),
      (dot, value, i) =>
        place(
          bars,
          dot,
          i + 0.5,
          value,
          `${format(value)}, probability ${format(result.probabilities[i])}`,
        ),
    );
    // hard samples would cover each other: they are spread a little around their corner
    each(
      points,
      "sample",
      result.samples,
      () => make("circle", { r: 2.6, "fill-opacity": 0.6 }),
      (dot, y, j) => {
        const [x, up] = isHard
          ? CORNERS[result.choices[j]].map((v, axis) => v + 0.018 * state.noise[j][axis])
          : onSimplex(y);
        update(dot, {
          cx: simplex.px(x),
          cy: simplex.py(up),
          fill: `var(${COLORS[result.choices[j]]})`,
        });
      },
    );
    const [x, y] = onSimplex(isHard ? result.hard : result.soft);
    update(average, { cx: simplex.px(x), cy: simplex.py(y) });
    [result.probabilities, result.soft, result.hard].forEach((values, k) =>
      each(
        shares.layer,
        `share${k}`,
        values,
        () => make("rect", { fill: `var(${KINDS[k]})` }),
        (bar, value, i) =>
          update(bar, {
            x: shares.px(i + 0.14 + 0.24 * k),
            width: shares.px(0.22) - shares.px(0),
            y: shares.py(value),
            height: shares.box.bottom - shares.py(value),
          }),
      ),
    );
  });
}

const explorer = { render };
export default explorer;
