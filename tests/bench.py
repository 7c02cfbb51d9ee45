"""`make bench`: nearest-code search beside torch.cdist and a plain matrix product, its memory, a
training step, and the frames of a drag in the codebook explorer.

Side by side in one run, because absolute times depend on the machine and on what else it does.
Reports; asserts nothing.
"""
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from vqvae.quantizers.learning import EMALearning
from vqvae.quantizers.search import nearest_codes
from vqvae.quantizers.vq import VectorQuantizer


def best_of(repeats, call, *arguments):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_above(call):
    """Largest resident memory during a call above that before it, in MB, looked at every
    millisecond."""
    start, peak, done = resident(), [0], threading.Event()

    def watch():
        while not done.wait(0.001): peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return (max(peak[0], resident()) - start) / 1e6


def problem(rows, size, dim):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, dim, generator=generator), torch.randn(size, dim, generator=generator)


def by_cdist(z, codes): return torch.cdist(z, codes).argmin(1)


def product_in_blocks(z, codes, rows=1024):
    for block in z.split(rows): block @ codes.T


def search_table():
    print("| latents × codes × dim | search (s) | cdist + argmin (s) | matrix product (s) | search "
          "/ product |")
    print("| :-- | --: | --: | --: | --: |")
    for rows, size, dim, repeats in ((4096, 256, 8, 20), (16384, 1024, 64, 5), (16384, 4096, 32, 3),
                                     (65536, 16384, 64, 1)):
        z, codes = problem(rows, size, dim)
        whole = rows * size * 4 < 2e9  # the table of distances has to fit
        search = best_of(repeats, nearest_codes, z, codes)
        cdist = best_of(repeats, by_cdist, z, codes) if whole else float("nan")
        product = best_of(repeats, product_in_blocks, z, codes)
        print(
            f"| {rows} × {size} × {dim} | {search:.4f} | {cdist:.4f} | {product:.4f} | "
            f"{search / product:.2f} |",
            flush=True,
        )


def training_step(quantizer, optimizer, z):
    x = z.clone().requires_grad_()
    z_q, _, info = quantizer(x)
    (z_q.square().mean() + sum(info["losses"].values())).backward()
    if optimizer:
        optimizer.step()
        optimizer.zero_grad()


def step_table():
    print("| one training step, 8192 latents × 1024 codes × 64 | ms |")
    print("| :-- | --: |")
    z, codes = problem(8192, 1024, 64)
    for name, learning in (("loss", None), ("moving average", EMALearning())):
        quantizer = VectorQuantizer(64, 1024, codes, learning=learning)
        optimizer = torch.optim.Adam(quantizer.parameters()) if learning is None else None
        best = best_of(10, training_step, quantizer, optimizer, z)
        print(f"| VectorQuantizer by {name} | {1000 * best:.1f} |")


def memory():
    z, codes = problem(65536, 16384, 64)
    # what the first call of anything allocates is not the search's
    nearest_codes(z[:64], codes[:64])
    print("peak memory of search at 65536 × 16384 × 64 above its inputs: "
          f"{peak_above(lambda: nearest_codes(z, codes)):.0f} MB")


DRAG = """async ([label, milliseconds]) => {
    const dot = document.querySelector(`[aria-label="${label}"]`);
    const box = dot.getBoundingClientRect();
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    const point = (type, dx, dy) => dot.dispatchEvent(new PointerEvent(type, {
        pointerId: 1, isPrimary: true, clientX: x + dx, clientY: y + dy, bubbles: true }));
    dot.setPointerCapture = () => {}; // there is no such pointer: the events are ours
    dot.hasPointerCapture = () => true;
    point("pointerdown", 0, 0);
    const frames = [], work = [], start = performance.now(), channel = new MessageChannel();
    await new Promise((done) => {
        let begun = 0;
        // after scripts, style, layout and paint
        channel.port1.onmessage = () => work.push(performance.now() - begun);
        const frame = (now) => {
            frames.push(now);
            if (now - start > milliseconds) return done();
            begun = performance.now();
            channel.port2.postMessage(0);
            // before the move: the explorer's callback runs after this one, inside what is timed
            requestAnimationFrame(frame);
            const turn = (now - start) / 200;
            point("pointermove", 60 * Math.cos(turn), 60 * Math.sin(turn));
        };
        requestAnimationFrame(frame);
    });
    point("pointerup", 0, 0);
    return { frames, work };
}"""


def frames_table():
    try:
        from browser import CHROMIUM, OFFLINE
        from playwright.sync_api import sync_playwright

        from vqvae.explorers import CodebookExplorer
    except ImportError as error:
        return print(f"frames of a drag: left out, because {error.name} is not installed (pip "
                     "install -e '.[dev]')")
    if not CHROMIUM: return print("frames of a drag: left out, because there is no Chromium")
    explorer = CodebookExplorer(torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
    html = explorer.page().split("\n", 1)[1].rpartition("\n")[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(OFFLINE))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_content(f"<!doctype html><body>{html}")
        page.get_by_label("Codeword 1", exact=True).wait_for()
        measured = page.evaluate(DRAG, ["Codeword 1", 5000])
        browser.close()
    between = torch.tensor(measured["frames"]).double().diff()
    work = torch.tensor(measured["work"]).double()
    print("| dragging one of 64 codewords for 5 s, a move in every frame | |\n| :-- | --: |")
    print(f"| frames per second | {1000 / between.mean():.1f} |")
    for name, values in (("between frames", between),
                         ("at work per frame: script, style, layout, paint", work)):
        middle, late, most = (values.quantile(q).item() for q in (0.5, 0.99, 1.0))
        print(f"| ms {name}: median, 99th percentile, longest | {middle:.1f}, {late:.1f}, "
              f"{most:.1f} |")


if __name__ == "__main__":
    if sys.argv[1:] == ["memory"]: memory()
    else:
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
        search_table()
        print(flush=True)
        # a fresh process: freed memory hides nothing
        subprocess.run([sys.executable, __file__, "memory"], check=True)
        print()
        step_table()
        print()
        frames_table()
