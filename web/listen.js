// From blocks of samples at any rate to events: resampling, the graph, and the rule that makes scores into words.

// Blocks of samples at `from` Hz -> blocks at `to` Hz: a sinc under a Hann window, cut off at the lower of both rates.
export class Resampler {
  constructor(from, to, width = 6, rolloff = 0.99) {
    this.ratio = from / to;
    this.cut = rolloff * Math.min(1, to / from); // of the input's own band
    this.half = Math.ceil(width / this.cut);
    this.held = new Float32Array(this.half); // silence before the first sample
    this.next = this.half; // where in `held` the next output lies
  }

  push(block) {
    if (this.ratio === 1) return block;
    const { half, cut } = this;
    const held = new Float32Array(this.held.length + block.length);
    held.set(this.held);
    held.set(block, this.held.length);
    const out = [];
    for (; this.next + half < held.length; this.next += this.ratio) {
      let sum = 0;
      for (let i = Math.ceil(this.next - half); i <= this.next + half; i++) {
        const x = (i - this.next) * cut;
        const window = Math.cos((Math.PI * (i - this.next)) / (2 * half)) ** 2;
        sum += held[i] * window * (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
      }
      out.push(sum * cut);
    }
    const past = Math.max(0, Math.floor(this.next) - half);
    this.held = held.slice(past);
    this.next -= past;
    return Float32Array.from(out);
  }
}

// Feeds an exported graph, streaming or of whole windows. push(samples at 16 kHz) gives [{time, probabilities, logits}, …].
export class Graph {
  constructor(ort, session, card) {
    Object.assign(this, { ort, session, card });
    this.hop = card.streaming ? card.samples : Math.round(card.hop_s * card.sample_rate);
    this.state = new ort.Tensor("float32", new Float32Array(card.state ?? 0), [1, card.state ?? 0]);
    this.held = new Float32Array(card.streaming ? 0 : card.samples - this.hop);
    this.heard = 0; // samples that the graph has seen
  }

  async push(samples) {
    const held = new Float32Array(this.held.length + samples.length);
    held.set(this.held);
    held.set(samples, this.held.length);
    const { ort, card, hop } = this;
    const found = [];
    let at = 0;
    for (; at + card.samples <= held.length; at += hop) {
      const wave = new ort.Tensor("float32", held.slice(at, at + card.samples), [1, card.samples]);
      const out = await this.session.run(card.streaming ? { chunk: wave, state: this.state } : { wave });
      if (card.streaming) this.state = out.next_state;
      this.heard += hop;
      found.push({ time: this.heard / card.sample_rate, probabilities: out.probabilities.data, logits: out.logits.data });
    }
    this.held = held.slice(at);
    return found;
  }
}

// Scores to events. A score is a log-odds, the mean over the last `smooth` decisions; an event is a score at or above the
// threshold (a number, or one for each label), no sooner than refractory_s seconds after the last of that label.
export class Rule {
  constructor(card) {
    Object.assign(this, { card, threshold: card.threshold });
    this.last = [];
    this.until = {};
  }

  logOdds({ logits, probabilities }) {
    return this.card.detector
      ? Array.from(logits)
      : Array.from(probabilities, (p) => Math.log(Math.max(p, 1e-12)) - Math.log(Math.max(1 - p, 1e-7)));
  }

  push(decision) {
    this.last = [...this.last, this.logOdds(decision)].slice(-this.card.smooth);
    return this.card.labels.flatMap((label, i) => {
      const score = this.last.reduce((sum, odds) => sum + odds[i], 0) / this.last.length;
      const least = typeof this.threshold === "number" ? this.threshold : this.threshold[label];
      if (label.startsWith("_") || !(score >= least) || decision.time < (this.until[label] ?? 0)) return [];
      this.until[label] = decision.time + this.card.refractory_s;
      return [{ time: decision.time, label, score }];
    });
  }
}
