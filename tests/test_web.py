"""The page that listens, in a real Chromium whose microphone is a wave file: it spots the words that Python spots."""

import functools
import http.server
import io
import shutil
import subprocess
import threading
import time
import zipfile

import numpy as np
import pytest
import torch

WORDS = ("yes", "stop", "happy", "left", "zero")


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    """Address of the page: its files, and both graphs of Mamba-Light."""
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    from kwslib.export import export

    folder = tmp_path_factory.mktemp("site")
    for path in (root / "web").iterdir():
        if not path.name.startswith("model."):
            (folder / path.name).symlink_to(path)
    if not (folder / "node_modules/onnxruntime-web").is_dir():
        installed(folder)
    export("mamba_light", folder / "carried.onnx", streaming=True)
    export("mamba_light", folder / "windows.onnx")
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()


def installed(folder):
    """Fetch what package.json names into the folder, as `make page` does."""
    if not shutil.which("npm"):
        pytest.skip("no npm here; on Debian: apt-get install npm")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
    try:
        subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=120)
    except subprocess.SubprocessError as e:  # no network
        pytest.skip(f"npm cannot fetch onnxruntime-web ({e})")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and keeps what was asked for."""

    asked = []

    def log_message(self, *_):
        self.asked.append(f"{self.command} {self.path}")


@pytest.fixture(scope="module")
def spoken(real_clips, tmp_path_factory):
    """(wave file, samples, spotter): each word's most confident of twelve clips, in faint noise, two seconds apart."""
    import soundfile

    import kwslib

    spotter, rng, parts = kwslib.load("mamba_light"), np.random.default_rng(0), []
    with zipfile.ZipFile(real_clips) as clips:
        for word in WORDS:
            names = sorted(n for n in clips.namelist() if f"/{word}/" in n and n.endswith(".opus"))[:12]
            waves = torch.zeros(len(names), 16000)
            for row, name in zip(waves, names):
                samples = soundfile.read(io.BytesIO(clips.read(name)), dtype="float32")[0][:16000]
                row[: len(samples)] = torch.from_numpy(samples)
            best = spotter.logits(waves).softmax(1)[:, spotter.labels.index(word)].argmax()
            parts += [np.zeros(24000), waves[best].numpy()]
    wave = np.concatenate([*parts, np.zeros(24000)])
    wave = (wave + rng.normal(0, 3e-4, len(wave))).astype(np.float32)
    path = tmp_path_factory.mktemp("spoken") / "words.wav"
    soundfile.write(path, wave, 16000, "PCM_16")
    return path, wave, spotter


def open_browser(wave):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for switch in (
        "headless=new", "no-sandbox", "disable-dev-shm-usage", "use-fake-ui-for-media-stream", "window-size=1000,900",
        "use-fake-device-for-media-stream", f"use-file-for-fake-audio-capture={wave}%noloop",
        "autoplay-policy=no-user-gesture-required",
    ):  # fmt: skip
        options.add_argument(f"--{switch}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def wait_for(browser, condition, seconds):
    until = time.monotonic() + seconds
    while not browser.execute_script(f"return {condition}"):
        told = browser.execute_script("return [window.kws?.state, window.kws?.error]")
        assert time.monotonic() < until and told[1] is None, (condition, told)
        time.sleep(0.2)


@pytest.mark.parametrize("mode", ["carried", "windows"])
def test_the_page_spots_what_python_spots(site, spoken, tmp_path, mode):
    address = f"{site}?model={mode}"
    path, wave, spotter = spoken
    expected = spotter.spot(path, mode=mode)
    assert [event.word for event in expected] == list(WORDS)
    browser = open_browser(path)
    try:
        browser.get(address)
        wait_for(browser, "window.kws?.state === 'ready'", 60)
        loaded = len(QuietHandler.asked)
        browser.find_element("id", "listen").click()
        enough = len(wave) // 1600 - 15 if mode == "windows" else len(wave) // 1280 - 12
        wait_for(browser, f"window.kws.decisions >= {enough}", 120)
        found = browser.execute_script("return window.kws.events")
        rows = [row.text.split()[0] for row in browser.find_elements("css selector", "#events li")]
        browser.save_screenshot(str(tmp_path / "page.png"))
        drawn = browser.execute_script(
            "const c = document.getElementById('spectrogram');"
            "return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
        )
    finally:
        browser.quit()
    assert [event["label"] for event in found] == list(WORDS) == rows[::-1]
    shifts = [event["time"] - by_python.time for event, by_python in zip(found, expected)]
    assert max(shifts) - min(shifts) < 0.35  # the file begins when the microphone opens
    assert drawn > 20
    assert set(QuietHandler.asked[loaded:]) <= {"GET /recorder.js"}  # nothing is sent, and nothing else fetched
