// The page: microphone -> recorder.js -> listen.js -> what is seen. Everything stays here: no request after loading.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { Graph, Resampler, Rule } from "./listen.js";

const $ = (id) => document.getElementById(id);
const model = new URLSearchParams(location.search).get("model") ?? "model"; // model.onnx and model.json
const kws = (window.kws = { events: [], decisions: 0, milliseconds: 0, error: null, state: "loading" });

async function load() {
  ort.env.wasm.numThreads = 1; // more need headers that a plain static server does not send
  const card = await (await fetch(`${model}.json`)).json();
  const session = await ort.InferenceSession.create(`${model}.onnx`);
  const rule = new Rule(card);
  showThreshold(rule);
  showLabels(card.labels);
  $("listen").onclick = () => listen(card, session, rule).catch(fail);
  $("listen").disabled = false;
  say("ready", `${card.model} is loaded: ${card.labels.length} words. Press Listen and say one of them.`);
}

async function listen(card, session, rule) {
  $("listen").disabled = true;
  const sound = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const microphone = await navigator.mediaDevices.getUserMedia({ audio: sound });
  const context = new AudioContext();
  await context.audioWorklet.addModule("recorder.js");
  const source = context.createMediaStreamSource(microphone);
  const recorder = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
  const resampler = new Resampler(context.sampleRate, card.sample_rate);
  const graph = new Graph(ort, session, card);
  let queue = Promise.resolve();
  recorder.port.onmessage = ({ data }) => {
    queue = queue.then(() => step(graph, rule, resampler.push(data))).catch(fail);
  };
  source.connect(recorder);
  draw(context, source);
  say("listening", `Listening at ${context.sampleRate} Hz.`);
}

async function step(graph, rule, samples) {
  const started = performance.now();
  const decisions = await graph.push(samples);
  kws.milliseconds += performance.now() - started;
  for (const decision of decisions) {
    kws.decisions += 1;
    showScores(decision.probabilities);
    for (const event of rule.push(decision)) {
      kws.events.push(event);
      showEvent(event);
    }
  }
  if (kws.decisions) {
    const each = kws.milliseconds / kws.decisions;
    say("listening", `Listening: ${each.toFixed(1)} ms of work for ${(1000 * graph.hop) / 16000} ms of sound.`);
  }
}

function say(state, text) {
  kws.state = state;
  $("status").textContent = text;
}

function fail(error) {
  kws.error = String(error);
  say("failed", error.name === "NotAllowedError" ? "The browser may not use the microphone; allow it, and load again." : kws.error);
}

function showLabels(labels) {
  $("scores").innerHTML = labels
    .map(() => '<div class="score"><span></span><div class="bar"><i></i></div><span class="value"></span></div>')
    .join("");
  labels.forEach((label, i) => ($("scores").children[i].firstChild.textContent = label));
}

function showScores(probabilities) {
  probabilities.forEach((p, i) => {
    const row = $("scores").children[i];
    row.querySelector("i").style.width = `${100 * p}%`;
    row.lastChild.textContent = `${Math.round(100 * p)} %`;
  });
}

function showEvent({ time, label }) {
  const row = document.createElement("li");
  row.append(label, Object.assign(document.createElement("time"), { textContent: `${time.toFixed(1)} s` }));
  $("events").prepend(row);
  const word = $("word");
  word.textContent = label;
  word.classList.remove("new");
  void word.offsetWidth; // so that the animation starts again
  word.classList.add("new");
}

function showThreshold(rule) {
  const slider = $("threshold");
  const tell = (score) => ($("threshold-value").textContent = `${(100 / (1 + Math.exp(-score))).toFixed(1)} % sure`);
  if (typeof rule.threshold !== "number") return (slider.parentElement.hidden = true);
  slider.max = Math.max(8, rule.threshold + 2);
  slider.value = rule.threshold;
  slider.oninput = () => tell((rule.threshold = Number(slider.value)));
  tell(rule.threshold);
}

// A spectrogram that moves to the left, two columns at each picture, up to 8 kHz.
function draw(context, source) {
  const analyser = new AnalyserNode(context, { fftSize: 1024, smoothingTimeConstant: 0, minDecibels: -100, maxDecibels: -25 });
  source.connect(analyser);
  const canvas = $("spectrogram");
  const pen = canvas.getContext("2d");
  const levels = new Uint8Array(analyser.frequencyBinCount);
  const rows = Math.round((8000 / (context.sampleRate / 2)) * levels.length);
  const column = pen.createImageData(1, canvas.height);
  const picture = () => {
    analyser.getByteFrequencyData(levels);
    for (let y = 0; y < canvas.height; y++) {
      const level = levels[Math.floor(((canvas.height - 1 - y) / canvas.height) * rows)] / 255;
      column.data.set([251 - 230 * level, 252 - 165 * level, 253 - 95 * level ** 2, 255], 4 * y);
    }
    pen.drawImage(canvas, -2, 0);
    for (const x of [2, 1]) pen.putImageData(column, canvas.width - x, 0);
    requestAnimationFrame(picture);
  };
  requestAnimationFrame(picture);
}

load().catch(fail);
