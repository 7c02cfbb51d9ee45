// Collapse explorer: recorded trainings, two at a time. `compute` is pure: it reads a frame and
// counts.

export const runOf = (recording, names) => recording.runs[names.join(", ")];

// What is to be seen of both runs at one frame.
export function compute({ recording, frame, left, right }) {
  const see = (names) => {
    const run = runOf(recording, names),
      places = (name) => run[name][frame].map((point) => point.map((v) => v * recording.unit));
    const codes = places("codes"),
      latents = places("latents"),
      counts = run.counts[frame];
    return {
      codes,
      latents,
      counts,
      owners: latents.map((z) => nearest(z, codes)),
      ...use(counts),
      reconstruction: run.reconstruction[frame],
      codebook: run.codebook[frame],
    };
  };
  return { step: recording.steps[frame], left: see(left), right: see(right) };
}

const SIDES = ["left", "right"],
  COLORS = { left: "var(--vq-1)", right: "var(--vq-2)" },
  PAUSE = 350; // milliseconds between frames

function render({ model, el }) {
  const { controls, plots } = layout(el, "Collapse explorer");
  const recording = model.get("recording"),
    { steps, choices, runs } = recording,
    last = steps.length - 1;
  const goTo = (frame) => assign(model, { frame: Math.max(0, Math.min(last, Math.round(frame))) });
  const chosen = Object.fromEntries(
    SIDES.map((side) => {
      const group = make("div", {
        class: "vq-group",
        role: "group",
        "aria-label": `${side} run`,
        style: `border-color: ${COLORS[side]}`,
      });
      controls.append(group);
      const menus = Object.entries(choices).map(([name, options], i) =>
        select(group, {
          label: name,
          options,
          change: (value) =>
            assign(model, { [side]: model.get(side).map((old, j) => (j === i ? value : old)) }),
        }),
      );
      const measures = ["Perplexity", "Dead codes", "Reconstruction loss", "Codebook loss"];
      return [
        side,
        {
          menus,
          measures: readout(
            group,
            measures.map((name) => `${name}, ${side}`),
          ),
        },
      ];
    }),
  );
  // stays in sight while one looks at the plots
  const time = make("div", { class: "vq-controls vq-sticky" });
  controls.after(time);
  const position = slider(time, { label: "Frame", min: 0, max: last, step: 1, change: goTo });
  // With reduced motion nothing moves by itself: the button shows one frame more.
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = still ? "next frame" : "play";
  };
  const next = () => {
    if (!el.isConnected || model.get("frame") >= last) stop();
    else goTo(model.get("frame") + 1);
  };
  const play = button(time, "", () => {
    if (timer !== null) return stop();
    if (model.get("frame") >= last) goTo(0);
    else next();
    if (!still) {
      timer = setInterval(next, PAUSE);
      play.textContent = "pause";
    }
  });
  stop();

  // frames are equally far apart
  const across = { x: [0, last], xLabel: "training step", xText: (i) => String(steps[i] ?? "") };
  const planes = {},
    bars = {};
  for (const side of SIDES)
    planes[side] = plot(plots, {
      title: `Latents and codewords, ${side}`,
      x: [-1, 1],
      y: [-1, 1],
      xLabel: "latent dimension 1",
      yLabel: "latent dimension 2",
      square: true,
      width: 360,
      height: 360,
    });
  for (const side of SIDES)
    bars[side] = plot(plots, {
      title: `Use of the codes, ${side}`,
      x: [0, 1],
      y: [0, 1],
      xLabel: "codes, most used first",
      yLabel: "share of latents",
      height: 200,
    });
  const most = Math.max(
    ...Object.values(runs).flatMap((run) => run.counts.map((counts) => use(counts).perplexity)),
  );
  const losses = Object.values(runs).flatMap((run) => run.reconstruction);
  const curves = plot(plots, {
    title: "Perplexity in every run",
    ...across,
    y: [0, 1.08 * most],
    yLabel: "perplexity",
  });
  const falling = plot(plots, {
    title: "Reconstruction loss in every run",
    ...across,
    y: [0, 1.05 * Math.max(...losses)],
    yLabel: "squared error per pixel",
  });

  const layers = Object.fromEntries(
    SIDES.map((side) => [side, ["spokes", "latents", "codes"].map(() => make("g"))]),
  );
  for (const side of SIDES) planes[side].layer.append(...layers[side]);
  const lines = [
    [curves, (run) => run.counts.map((counts) => use(counts).perplexity)],
    [falling, (run) => run.reconstruction],
  ].map(([figure, values]) => {
    const paths = Object.fromEntries(
      Object.entries(runs).map(([name, run]) => [
        name,
        make(
          "path",
          { class: "vq-curve", d: figure.path(values(run).map((value, i) => [i, value])) },
          make("title", {}, name),
        ),
      ]),
    );
    const now = make("line", { class: "vq-limit", y1: figure.box.top, y2: figure.box.bottom });
    figure.layer.append(...Object.values(paths), now);
    return { figure, paths, now };
  });
  // any arrow key moves it
  const cursor = handle(curves, {
    label: "Frame in the curves",
    step: 1,
    read: () => [model.get("frame"), 0],
    move: (x, y, { key }) => goTo(key ? x + y : x),
  });
  curves.layer.append(cursor);

  onChange(model, ["frame", ...SIDES], () => {
    const names = Object.fromEntries(SIDES.map((side) => [side, model.get(side)])),
      frame = model.get("frame");
    const result = compute({ recording, frame, ...names });
    position.show(frame);
    position.input.nextElementSibling.textContent = `step ${result.step}`;
    update(position.input, { "aria-valuetext": `step ${result.step}` });
    const places = SIDES.flatMap((side) =>
      ["codes", "latents"].flatMap((kind) => runOf(recording, names[side])[kind].flat()),
    );
    const ends = [0, 1]
      .map((axis) => places.map((place) => place[axis] * recording.unit))
      .map((values) => [Math.min(...values), Math.max(...values)]);
    // the same for both planes and all frames
    const reach = 0.53 * Math.max(...ends.map(([low, high]) => high - low));
    const ranges = ends.map(([low, high]) => [(low + high) / 2 - reach, (low + high) / 2 + reach]);
    const fullest = Math.max(
      ...SIDES.flatMap((side) =>
        result[side].counts.map((count) => count / result[side].counts.reduce((a, b) => a + b, 0)),
      ),
    );
    for (const side of SIDES) {
      const { codes, latents, counts, owners, perplexity, dead, reconstruction, codebook } =
        result[side];
      const [spokes, dots, marks] = layers[side],
        figure = planes[side];
      chosen[side].menus.forEach((menu, i) => menu.show(names[side][i]));
      chosen[side].measures.show([
        format(perplexity),
        `${dead} of ${codes.length}`,
        format(reconstruction),
        format(codebook),
      ]);
      figure.axes(...ranges);
      each(
        spokes,
        "spoke",
        latents,
        () => make("line", { stroke: COLORS[side], "stroke-opacity": 0.35 }),
        (line, [x, y], i) => {
          const [a, b] = codes[owners[i]];
          update(line, { x1: figure.px(x), y1: figure.py(y), x2: figure.px(a), y2: figure.py(b) });
        },
      );
      each(
        dots,
        "latent",
        latents,
        () => make("circle", { r: 2.2, fill: "var(--vq-ink)", "fill-opacity": 0.65 }),
        (dot, [x, y]) => update(dot, { cx: figure.px(x), cy: figure.py(y) }),
      );
      each(
        marks,
        "code",
        codes,
        () => make("circle", { r: 5, stroke: COLORS[side], "stroke-width": 1.6 }),
        (dot, [x, y], i) =>
          update(dot, {
            cx: figure.px(x),
            cy: figure.py(y),
            fill: counts[i] ? COLORS[side] : "none",
          }),
      );
      const shares = counts
          .map((count) => count / counts.reduce((a, b) => a + b, 0))
          .sort((a, b) => b - a),
        graph = bars[side];
      graph.axes([0, codes.length], [0, 1.08 * fullest]);
      each(
        graph.layer,
        "share",
        shares,
        () => make("rect", { fill: COLORS[side] }),
        (bar, share, i) =>
          update(bar, {
            x: graph.px(i + 0.1),
            width: graph.px(0.8) - graph.px(0),
            y: graph.py(share),
            height: graph.box.bottom - graph.py(share),
          }),
      );
    }
    for (const { figure, paths, now } of lines) {
      for (const [name, path] of Object.entries(paths)) {
        const side = SIDES.find((side) => names[side].join(", ") === name);
        update(path, {
          style: side
            ? `stroke: ${COLORS[side]}; stroke-width: 3`
            : "stroke: var(--vq-soft); stroke-width: 1; stroke-opacity: 0.4",
        });
      }
      update(now, { x1: figure.px(frame), x2: figure.px(frame) });
    }
    const [left, right] = SIDES.map((side) => format(result[side].perplexity));
    const said = `step ${result.step}: perplexity ${left} left, ${right} right`;
    place(curves, cursor, frame, curves.y[1], said);
    update(cursor, { "aria-valuenow": frame });
  });
  return stop; // called when the picture is taken away
}

const explorer = { render };
export default explorer;
