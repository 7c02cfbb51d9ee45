"The explorers live: a real JupyterLab on loopback, a real kernel, a real mouse."
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from browser import missing

NOTEBOOKS = Path(__file__).parent.parent / "nbs" / "explorers"
pytestmark = pytest.mark.slow
PATIENCE = 120_000  # milliseconds: a kernel that imports torch on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A server with settings of its own, in a folder with a copy of the explorers' notebooks."
    for name in ("jupyterlab", "anywidget", "jupyter_client"):
        if find_spec(name) is None: missing(f"{name} is not installed: pip install -e '.[lab]'")
    folder, port, token = tmp_path_factory.mktemp("lab"), free_port(), secrets.token_hex(8)
    for path in NOTEBOOKS.glob("*.ipynb"): shutil.copy(path, folder)
    own = {f"JUPYTER{name}": str(folder / "settings" / name.lower()) for name in
           ("_CONFIG_DIR", "_DATA_DIR", "_RUNTIME_DIR", "LAB_SETTINGS_DIR", "LAB_WORKSPACES_DIR")}
    tracker = (
        Path(own["JUPYTERLAB_SETTINGS_DIR"])
        / "@jupyterlab"
        / "notebook-extension"
        / "tracker.jupyterlab-settings"
    )
    tracker.parent.mkdir(parents=True)
    # every cell is in the page, also what is scrolled away
    tracker.write_text('{"windowingMode": "none"}')
    environment = {**os.environ, **own, "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("VQVAE_STATIC", None)
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        f"--IdentityProvider.token={token}",
        "--LabApp.news_url=None",
        "--LabApp.extension_manager=readonly",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        f"--ServerApp.root_dir={folder}",
    ]
    log = folder / "server.log"
    with open(log, "w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment,
                                  cwd=folder)
    address = f"http://127.0.0.1:{port}"
    try:
        wait(lambda: answers(f"{address}/api?token={token}") or server.poll() is not None,
             explain=log.read_text)
        assert server.poll() is None, log.read_text()
        yield SimpleNamespace(address=address, token=token,
                              runtime=Path(own["JUPYTER_RUNTIME_DIR"]))
    finally:
        server.terminate()  # ends its kernels, too
        try: server.wait(30)
        except subprocess.TimeoutExpired: server.kill()


def answers(address: str) -> bool:
    with contextlib.suppress(OSError): return urlopen(address, timeout=5).status == 200
    return False


def wait(condition, pause=lambda: time.sleep(0.1), explain=lambda: ""):
    "What `condition()` gives as soon as it is true."
    end = time.monotonic() + PATIENCE / 1000
    while not (value := condition()):
        assert time.monotonic() < end, explain()
        pause()
    return value


class Notebook:
    "A notebook open in JupyterLab, run to its end; `ask` evaluates an expression in its kernel."
    def __init__(self, chromium, lab, name: str):
        self.lab, self.foreign, self.name = lab, [], name
        self.context = chromium.new_context(viewport={"width": 1400, "height": 1000})
        self.context.route("**/*", self.judge)
        self.page = self.context.new_page()
        before = set(lab.runtime.glob("kernel-*.json"))
        self.page.goto(
            f"{lab.address}/lab/workspaces/{Path(name).stem}/tree/{name}?token={lab.token}"
        )
        self.page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=PATIENCE)
        self.connection = self.wait(lambda: sorted(set(lab.runtime.glob("kernel-*.json"))
                                                   - before))[0]
        # before it is ready, a run is lost
        self.page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for(
            timeout=PATIENCE
        )
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.locator("[data-command='runmenu:run-all']").click()

    def judge(self, route) -> None:
        if route.request.url.startswith((self.lab.address, "data:", "blob:")):
            return route.continue_()
        self.foreign.append(route.request.url)
        route.abort()

    def wait(self, condition):
        # answers requests meanwhile
        return wait(condition, pause=lambda: self.page.wait_for_timeout(100))

    def ask(self, expression: str) -> str:
        "The `repr` of an expression, by a second client of the same kernel."
        from jupyter_client import BlockingKernelClient
        client = BlockingKernelClient(connection_file=str(self.connection))
        client.load_connection_file()
        client.start_channels()
        try:
            reply = client.execute_interactive("", user_expressions={"it": expression},
                                               timeout=PATIENCE / 1000, output_hook=lambda _: None,
                                               store_history=False)
            found = reply["content"]["user_expressions"]["it"]
            assert found["status"] == "ok", found
            return found["data"]["text/plain"]
        finally: client.stop_channels()

    def __enter__(self): return self
    def __exit__(self, *_): self.context.close()


def centre(handle) -> tuple[float, float]:
    box = handle.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_live_training(chromium, lab):
    with Notebook(chromium, lab, "07_live_training.ipynb") as notebook:
        page, step = notebook.page, lambda: int(notebook.ask("live.trainer.step"))
        run, stop = (page.get_by_role("button", name=name, exact=True) for name in ("Run", "Stop"))
        run.first.wait_for(timeout=PATIENCE)
        # the cells below have run
        notebook.wait(lambda: "whole" in notebook.ask("list(globals())"))
        begin, picture = step(), page.locator(".jp-OutputArea-output img").first
        shown = picture.get_attribute("src")
        run.first.click()
        notebook.wait(lambda: step() >= begin + 40)
        notebook.wait(lambda: picture.get_attribute("src") != shown)
        assert run.first.is_disabled()
        stop.first.click()
        notebook.wait(lambda: notebook.ask("live.running") == "False")
        end = step()
        page.wait_for_timeout(1000)
        assert step() == end
        page.get_by_text(f"step {end},").wait_for(timeout=PATIENCE)
        run.first.click()
        notebook.wait(lambda: step() > end)  # it continues
        stop.first.click()
        assert notebook.foreign == []


def test_the_codebook_explorer_is_live(chromium, lab):
    with Notebook(chromium, lab, "05_codebook.ipynb") as notebook:
        page = notebook.page
        handle = page.get_by_role("slider", name="Codeword 3", exact=True)
        handle.wait_for(timeout=PATIENCE)
        handle.scroll_into_view_if_needed()
        read = lambda: [
            float(x) for x in notebook.ask("explorer.codebook[2].tolist()").strip("[]").split(",")
        ]
        number = page.locator('.vq-readout output[name="Distortion"]')

        # the page moves the trait: by as much as the mouse moved
        before, (x, y), text = read(), centre(handle), number.inner_text()
        # pixels
        unit = page.evaluate("e => e.ownerSVGElement.getScreenCTM().a",
                             handle.element_handle()) * (400 - 12 - 42) / 6.4
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 90, y - 60, steps=5)
        page.mouse.up()
        there = [before[0] + 90 / unit, before[1] + 60 / unit]
        notebook.wait(lambda: max(abs(a - b) for a, b in zip(read(), there)) < 0.02)
        assert number.inner_text() != text

        # so does a key, which JupyterLab leaves alone
        active = lambda: page.locator(".jp-Notebook-cell.jp-mod-active").evaluate(
            "e => [...e.parentElement.children].indexOf(e)"
        )
        cell, height = active(), read()[1]
        handle.focus()
        page.keyboard.press("ArrowDown")
        notebook.wait(lambda: abs(read()[1] - (height - 0.05)) < 1e-9)
        assert active() == cell

        # the trait moves the page
        notebook.ask("setattr(explorer, 'codebook', [[-1.0, 0.0], [1.0, 0.0]])")
        page.get_by_role("slider", name="Codeword 3", exact=True).wait_for(
            state="detached", timeout=30_000
        )
        assert page.get_by_role("slider", name="Codeword").count() == 2
        assert page.locator('.vq-readout output[name="Dead codes"]').inner_text() == "0 of 2"
        shown = float(number.inner_text())
        # by symmetry: the nearer of the two
        exact = "float(np.square(abs(explorer.points) - [1, 0]).mean())"
        assert abs(shown - float(notebook.ask(exact))) < 0.001
        assert notebook.foreign == []
