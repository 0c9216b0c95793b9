const LENGTHS = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** Reads a chart as the server sends it. Everything in it may be hostile: numbers are checked, text is only ever text. */
function readChart(sent) {
  const columns = sent.candles ?? {};
  const word = (value) => (["string", "number"].includes(typeof value) ? String(value) : "");
  const number = (value) => (word(value) !== "" && Number.isFinite(Number(value)) ? Number(value) : null);
  const texts = (value) => (Array.isArray(value) ? value.slice(0, 5000).map(word) : []);
  const moment = (text) => number(text ? Date.parse(text) : null);
  const start = moment(sent.start) ?? 0;
  const [, count, unit] = /^(\d{1,4})([smhd])$/.exec(word(sent.timeframe)) ?? [];
  const interval = Math.max(1, number(sent.interval_ms) ?? (count ? count * LENGTHS[unit] : 1));
  const bars = [];
  (Array.isArray(sent.at) ? sent.at : []).slice(0, 5000).forEach((at, i) => {
    const [open, high, low, close] = ["open", "high", "low", "close"].map((name) => number(columns[name]?.[i]));
    if ([number(at), open, high, low, close].includes(null)) return;
    const words = ["open", "high", "low", "close", "volume"].map((name) => word(columns[name]?.[i]));
    bars.push({ index: i, time: start + at * interval, open, high, low, close, volume: number(columns.volume?.[i]) ?? 0, words });
  });
  const rows = (table) => {
    const names = Object.keys(table ?? {}).filter((name) => Array.isArray(table[name]));
    const most = Math.min(500, Math.max(0, ...names.map((name) => table[name].length)));
    return Array.from({ length: most }, (_, i) => Object.fromEntries(names.map((name) => [name, word(table[name][i])])));
  };
  const side = (row) => (row.side === "sell" ? "sell" : "buy");
  const orders = rows(sent.orders).map((row) => ({
    side: side(row), price: number(row.price), since: moment(row.since) ?? 0, until: moment(row.until),
    words: [side(row), row.quantity, row.price, row.status], reason: row.reason,
  }));
  const fills = rows(sent.fills).map((row) => ({
    side: side(row), price: number(row.price), time: moment(row.at) ?? 0, words: [side(row), row.quantity, row.price],
  }));
  const averages = Object.entries(sent.ema ?? {}).slice(0, 3).map(([period, values]) => ({
    name: `EMA ${period.slice(0, 4)}`, values: texts(values).map(number),
  }));
  const first = bars.length ? bars[0].time : start;
  const last = bars.length ? bars[bars.length - 1].time + interval : start + interval;
  return {
    symbol: word(sent.symbol), venue: word(sent.venue), timeframe: word(sent.timeframe),
    interval, bars, averages, first, last: Math.max(last, number(sent.until_ts_ms) ?? last),
    decimals: Math.min(12, Math.max(0, number(sent.decimals) ?? 2)), price: number(sent.last),
    lastClosed: sent.last_closed !== false, badges: texts(sent.badges), notes: texts(sent.notes),
    orders: orders.filter((order) => order.price !== null), fills: fills.filter((fill) => fill.price !== null),
  };
}

const two = (value) => String(value).padStart(2, "0");

/** A moment in UTC, as precise as `step` (milliseconds between two of them) needs. */
function clockText(ms, step = 1000) {
  const at = new Date(ms);
  if (Number.isNaN(at.getTime())) return "?";
  const day = `${at.getUTCFullYear()}-${two(at.getUTCMonth() + 1)}-${two(at.getUTCDate())}`;
  if (step >= 86_400_000) return day;
  const time = `${two(at.getUTCHours())}:${two(at.getUTCMinutes())}`;
  return `${day} ${time}${step < 60_000 ? `:${two(at.getUTCSeconds())}` : ""}`;
}

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400].map((s) => s * 1000);

/** Draws one chart on a canvas: candles, volume, averages, orders, fills and the crosshair. */
class ChartView {
  chart = null;
  chosen = null;
  pointer = null;

  constructor(canvas, root) {
    this.canvas = canvas;
    this.root = root;
    this.pen = canvas.getContext("2d");
  }

  /** Show another chart; the view stays where it was if `keep`, as after a refresh. */
  show(chart, keep) {
    const follow = !this.chart || !keep || this.to >= this.chart.last - this.chart.interval;
    const span = keep && this.chart ? this.to - this.from : chart.last - chart.first;
    this.chart = chart;
    this.chosen = null;
    if (follow) [this.from, this.to] = [chart.last - span, chart.last];
    this.#clamp();
  }

  all() {
    [this.from, this.to] = [this.chart.first, this.chart.last];
  }

  /** Zoom by `factor` (< 1 is nearer) about a place in [0, 1] of the width. */
  zoom(factor, place = 1) {
    const fixed = this.from + (this.to - this.from) * place;
    const span = Math.max((this.to - this.from) * factor, this.chart.interval * 4);
    this.from = fixed - span * place;
    this.to = this.from + span;
    this.#clamp();
  }

  /** Move by a part of the width; positive is towards the present. */
  pan(part) {
    const by = (this.to - this.from) * part;
    this.from += by;
    this.to += by;
    this.#clamp();
  }

  #clamp() {
    const { first, last } = this.chart;
    const span = Math.min(this.to - this.from, last - first);
    this.from = Math.min(Math.max(this.from, first), last - span);
    this.to = this.from + span;
  }

  /** Choose the candle `step` away from the chosen one, and bring it into view. */
  step(step) {
    const { bars, interval } = this.chart;
    const now = this.chosen === null ? (step > 0 ? -1 : bars.length) : this.chosen;
    this.choose(Math.min(Math.max(now + step, 0), bars.length - 1));
    const bar = bars[this.chosen];
    if (bar && bar.time < this.from) this.pan((bar.time - this.from) / (this.to - this.from));
    if (bar && bar.time + interval > this.to) this.pan((bar.time + interval - this.to) / (this.to - this.from));
  }

  choose(index) {
    this.chosen = index === null || !this.chart.bars.length ? null : index;
  }

  visible() {
    return this.chart.bars.filter((bar) => bar.time + this.chart.interval > this.from && bar.time < this.to);
  }

  x(time) {
    return ((time - this.from) / (this.to - this.from)) * this.width;
  }

  y(price) {
    return this.top + (1 - (price - this.low) / (this.high - this.low)) * this.height;
  }

  /** Choose what lies under a point: the candle of that time, and a fill or order close to it. */
  point(x, y) {
    this.pointer = { x, y };
    const time = this.from + (x / this.width) * (this.to - this.from);
    const { bars, interval, fills, orders } = this.chart;
    let best = null;
    bars.forEach((bar, i) => {
      const distance = Math.abs(bar.time + interval / 2 - time);
      if (best === null || distance < best.distance) best = { i, distance };
    });
    this.choose(best === null || best.distance > Math.max(interval, (this.to - this.from) / 40) ? null : best.i);
    const fill = fills.find((mark) => Math.hypot(this.x(this.#inside(mark.time)) - x, this.y(mark.price) - y) < 11);
    const order = orders.find((mark) => Math.abs(this.y(mark.price) - y) < 5 && mark.since <= time && (mark.until ?? Infinity) >= time);
    return { bar: this.chosen === null ? null : bars[this.chosen], fill, order };
  }

  leave() {
    this.pointer = null;
    this.chosen = null;
  }

  #inside(time) {
    return Math.min(Math.max(time, this.chart.first), this.chart.last);
  }

  #fit(bars) {
    const { fills, orders } = this.chart;
    const inView = (time) => time >= this.from && time <= this.to;
    const prices = bars.flatMap((bar) => [bar.low, bar.high]);
    prices.push(...fills.filter((mark) => inView(mark.time)).map((mark) => mark.price));
    let [low, high] = [Math.min(...prices), Math.max(...prices)];
    const room = high - low || Math.abs(high) * 0.001 || 1;
    for (const order of orders) {
      if (order.until === null && order.price > low - room / 2 && order.price < high + room / 2) prices.push(order.price);
    }
    [low, high] = [Math.min(...prices), Math.max(...prices)];
    this.low = low - room * 0.08;
    this.high = high + room * 0.1;
  }

  draw() {
    const { canvas, pen } = this;
    const scale = window.devicePixelRatio || 1;
    const [wide, tall] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(wide * scale);
    canvas.height = Math.round(tall * scale);
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    const style = getComputedStyle(this.root);
    this.color = (name) => style.getPropertyValue(`--${name}`).trim() || "#888";
    pen.font = `11px ${style.getPropertyValue("--font-sans") || "system-ui, sans-serif"}`;
    pen.clearRect(0, 0, wide, tall);
    if (!this.chart) return;
    const label = (value) => value.toLocaleString("en-US", { minimumFractionDigits: this.chart.decimals, maximumFractionDigits: this.chart.decimals });
    const bars = this.visible();
    if (!bars.length) {
      this.low = 0; this.high = 1; this.width = wide; this.top = 0; this.height = tall;
      this.#text("no candles in this window", wide / 2, tall / 2, "dim", "center");
      return;
    }
    this.#fit(bars);
    const gutter = Math.max(...[this.low, this.high].map((price) => pen.measureText(label(price)).width)) + 14;
    this.width = wide - gutter;
    this.top = 4;
    this.height = (tall - 26) * 0.78;
    const floor = tall - 20;
    this.#grid(label, floor);
    pen.save();
    pen.beginPath();
    pen.rect(0, 0, this.width, tall);
    pen.clip();
    this.#candles(bars, floor);
    this.#averages();
    this.#orders();
    this.#fills();
    pen.restore();
    this.#edges(label);
    this.#crosshair(label, floor);
  }

  #text(text, x, y, color, align = "left", back = null) {
    const { pen } = this;
    pen.textAlign = align;
    pen.textBaseline = "middle";
    if (back) {
      const width = pen.measureText(text).width + 6;
      pen.fillStyle = this.color(back);
      pen.fillRect(align === "left" ? x - 3 : x - width + 3, y - 8, width, 16);
    }
    pen.fillStyle = this.color(color);
    pen.fillText(text, x, y);
  }

  #line(x1, y1, x2, y2, color, dash = [], width = 1) {
    const { pen } = this;
    pen.strokeStyle = this.color(color);
    pen.lineWidth = width;
    pen.setLineDash(dash);
    pen.beginPath();
    pen.moveTo(x1, y1);
    pen.lineTo(x2, y2);
    pen.stroke();
    pen.setLineDash([]);
  }

  #grid(label, floor) {
    const rough = (this.high - this.low) / 6;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough) ?? rough;
    for (let price = Math.ceil(this.low / step) * step; price < this.high; price += step) {
      const y = Math.round(this.y(price)) + 0.5;
      this.#line(0, y, this.width, y, "grid");
      const taken = this.chart.price !== null && Math.abs(this.y(this.chart.price) - y) < 13;
      if (!taken) this.#text(label(price), this.width + 7, y, "dim");
    }
    const span = this.to - this.from;
    const most = Math.max(3, Math.floor(this.width / 80));
    const hop = STEPS.find((size) => size >= this.chart.interval && span / size <= most) ?? Math.ceil(span / most / 86_400_000) * 86_400_000;
    for (let time = Math.ceil(this.from / hop) * hop; time <= this.to; time += hop) {
      const x = Math.round(this.x(time)) + 0.5;
      this.#line(x, 0, x, floor, "grid");
      const [day, hour] = clockText(time, hop).split(" ");
      if (x > 24 && x < this.width - 12) this.#text(hour && time % 86_400_000 ? hour : day, x, floor + 11, "dim", "center");
    }
    this.#line(0, floor + 0.5, this.width, floor + 0.5, "line");
  }

  #candles(bars, floor) {
    const { pen, chart } = this;
    const slot = (chart.interval / (this.to - this.from)) * this.width;
    const width = Math.max(2, Math.min(Math.round(slot * 0.35) * 2, 22));
    const most = Math.max(...bars.map((bar) => bar.volume)) || 1;
    const deep = floor - this.top - this.height - 8;
    for (const bar of bars) {
      const rises = bar.close >= bar.open;
      const color = this.color(rises ? "up" : "down");
      // Lines one pixel wide are sharp in the middle of a pixel.
      const x = Math.floor(this.x(bar.time + chart.interval / 2)) + 0.5;
      const [above, below] = [Math.max(bar.open, bar.close), Math.min(bar.open, bar.close)].map((price) => Math.floor(this.y(price)) + 0.5);
      pen.globalAlpha = 0.5;
      pen.fillStyle = color;
      pen.fillRect(x - width / 2, floor - (bar.volume / most) * deep, width, (bar.volume / most) * deep);
      pen.globalAlpha = 1;
      this.#line(x, this.y(bar.high), x, above, rises ? "up" : "down");
      this.#line(x, below, x, this.y(bar.low), rises ? "up" : "down");
      pen.fillStyle = rises ? this.color("paper") : color;
      pen.strokeStyle = color;
      pen.lineWidth = 1;
      const tall = Math.max(below - above, 1);
      pen.fillRect(x - width / 2, above, width, tall);
      pen.strokeRect(x - width / 2, above, width, tall);
    }
  }

  #averages() {
    const { pen, chart } = this;
    chart.averages.forEach((average, i) => {
      pen.strokeStyle = this.color(`average-${i + 1}`);
      pen.lineWidth = 1.5;
      pen.setLineDash([[], [6, 3], [2, 2]][i]);
      pen.beginPath();
      let before = null;
      for (const bar of chart.bars) {
        const value = average.values[bar.index] ?? null;
        if (value === null) continue;
        // A line across a gap would look like an average that somebody knew; one interval without a trade is none.
        const joined = before !== null && bar.time - before < 2.5 * chart.interval;
        pen[joined ? "lineTo" : "moveTo"](this.x(bar.time + chart.interval / 2), this.y(value));
        before = bar.time;
      }
      pen.stroke();
      pen.setLineDash([]);
    });
  }

  #orders() {
    for (const order of this.chart.orders) {
      const [left, right] = [Math.max(0, this.x(order.since)), order.until === null ? this.width : this.x(order.until)];
      const y = Math.round(this.y(order.price)) + 0.5;
      if (right < 0 || left > this.width || right - left < 1) continue;
      this.#line(left, y, right, y, order.side, [6, 3], 1.5);
      const text = `${order.words[0]} ${order.words[1]}`;
      if (order.until === null) this.#text(text, Math.min(left + 5, this.width - 70), y - 9, order.side, "left", "paper");
    }
  }

  #fills() {
    const { pen } = this;
    for (const fill of this.chart.fills) {
      const [x, y] = [this.x(this.#inside(fill.time)), this.y(fill.price)];
      const tip = fill.side === "buy" ? -7 : 7;
      pen.beginPath();
      pen.moveTo(x, y + tip);
      pen.lineTo(x - 7, y - tip);
      pen.lineTo(x + 7, y - tip);
      pen.closePath();
      pen.fillStyle = this.color(fill.side);
      pen.strokeStyle = this.color("paper");
      pen.lineWidth = 1.5;
      pen.fill();
      pen.stroke();
    }
  }

  #edges(label) {
    const { chart } = this;
    const far = chart.orders.filter((order) => order.until === null && (order.price > this.high || order.price < this.low));
    far.slice(0, 6).forEach((order, i) => {
      const where = order.price > this.high ? "above" : "below";
      this.#text(`${order.words[0]} ${order.words[1]} @ ${order.words[2]} (${where})`, 6, this.top + 10 + i * 17, order.side, "left", "paper");
    });
    if (chart.price !== null && chart.price > this.low && chart.price < this.high) {
      const y = Math.round(this.y(chart.price)) + 0.5;
      this.#line(0, y, this.width, y, "ink", [1, 3]);
      this.#text(label(chart.price), this.width + 7, y, "paper", "left", "ink");
    }
  }

  #crosshair(label, floor) {
    const { chart } = this;
    const bar = this.chosen === null ? null : chart.bars[this.chosen];
    if (bar) {
      const x = Math.round(this.x(bar.time + chart.interval / 2)) + 0.5;
      this.#line(x, 0, x, floor, "dim", [3, 3]);
    }
    if (this.pointer && this.pointer.y < this.top + this.height && this.pointer.x < this.width) {
      const y = Math.round(this.pointer.y) + 0.5;
      this.#line(0, y, this.width, y, "dim", [3, 3]);
      const price = this.low + (1 - (this.pointer.y - this.top) / this.height) * (this.high - this.low);
      this.#text(label(price), this.width + 7, y, "paper", "left", "dim");
    }
  }
}
