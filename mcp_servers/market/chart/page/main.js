/** The page: what the host sends goes on the chart, what the user does goes to the view or back to the host. */
(() => {
  const root = document.documentElement;
  const find = (id) => document.getElementById(id);
  const [area, canvas, tip, readout] = ["chart", "canvas", "tip", "readout"].map(find);
  const host = new Host();
  const view = new ChartView(canvas, root);
  const frames = ["1s", "5s", "15s", "1m", "5m", "15m", "1h", "4h", "1d"];
  const KEPT = 120;
  let asked = {};
  let due = false;

  function element(name, text, className) {
    const made = document.createElement(name);
    made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function redraw() {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      view.draw();
    });
  }

  function barText(bar) {
    const [open, high, low, close, volume] = bar.words;
    const still = !view.chart.lastClosed && bar === view.chart.bars.at(-1) ? " (open)" : "";
    return `${clockText(bar.time, view.chart.interval)} UTC${still}  O ${open}  H ${high}  L ${low}  C ${close}  V ${volume}`;
  }

  const fillText = (fill) => `${fill.words[0] === "sell" ? "Sold" : "Bought"} ${fill.words[1]} at ${fill.words[2]}\n${clockText(fill.time)} UTC`;

  function orderText(order) {
    const [side, quantity, price, status] = order.words;
    const why = order.reason ? `\n${order.reason}` : "";
    return `Order: ${side} ${quantity} at ${price}, ${status}\nsince ${clockText(order.since)} UTC${why}`;
  }

  function say() {
    const { chart, chosen } = view;
    if (!chart) return;
    const bar = chosen === null ? chart.bars.at(-1) : chart.bars[chosen];
    readout.textContent = bar ? barText(bar) : "No candles in this window.";
  }

  function showTip(found, x, y) {
    const mark = found.fill ? fillText(found.fill) : found.order ? orderText(found.order) : null;
    const text = mark ?? (found.bar ? barText(found.bar).replaceAll("  ", "\n") : null);
    tip.hidden = text === null;
    if (text === null) return;
    tip.textContent = text;
    const left = x + 14 + tip.offsetWidth > area.clientWidth ? x - 14 - tip.offsetWidth : x + 14;
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${Math.max(0, Math.min(y + 12, area.clientHeight - tip.offsetHeight))}px`;
  }

  function rows(body, heads, lines) {
    const head = body.parentElement.tHead;
    head.replaceChildren(element("tr", ""));
    head.rows[0].append(...heads.map((text) => Object.assign(element("th", text), { scope: "col" })));
    body.replaceChildren(...lines.map((line) => {
      const row = element("tr", "");
      row.append(...line.map((text) => element("td", text)));
      return row;
    }));
  }

  function numbers() {
    if (!find("numbers").open || !view.chart) return;
    const { orders, fills, interval } = view.chart;
    rows(find("marks"), ["Time, UTC", "What", "Quantity", "Price", "State"], [
      ...orders.map((order) => [clockText(order.since), `${order.words[0]} order`, order.words[1], order.words[2],
        order.reason ? `${order.words[3]}: ${order.reason}` : order.words[3]]),
      ...fills.map((fill) => [clockText(fill.time), fill.words[0] === "sell" ? "sold" : "bought", fill.words[1], fill.words[2], "filled"]),
    ]);
    rows(find("candles"), ["Time, UTC", "Open", "High", "Low", "Close", "Volume"],
      view.visible().slice(-200).reverse().map((bar) => [clockText(bar.time, interval), ...bar.words]));
  }

  function changed() {
    tip.hidden = true;
    redraw();
    numbers();
  }

  function show(chart) {
    const same = view.chart && view.chart.symbol === chart.symbol && view.chart.timeframe === chart.timeframe;
    view.show(chart, Boolean(same));
    document.title = `${chart.symbol} chart`;
    find("symbol").textContent = chart.symbol;
    find("where").textContent = `${chart.venue}  ${chart.timeframe}  UTC`;
    area.setAttribute("aria-label", `${chart.symbol} on ${chart.venue}, ${chart.bars.length} candles of ${chart.timeframe}, `
      + `${chart.orders.length} orders, ${chart.fills.length} fills`);
    find("badges").replaceChildren(...chart.badges.map((text) => {
      const made = element("span", text);
      made.setAttribute("role", "listitem");
      return made;
    }));
    find("notes").replaceChildren(...chart.notes.map((text) => element("li", text)));
    const key = (sign, color, text) => {
      const made = element("span", ` ${text}`);
      const drawn = element("i", sign);
      drawn.style.color = `var(--${color})`;
      made.prepend(drawn);
      return made;
    };
    find("legend").replaceChildren(
      key("\u25af", "up", "rise"), key("\u25ae", "down", "fall"),
      ...(chart.fills.length ? [key("\u25b2", "buy", "bought"), key("\u25bc", "sell", "sold")] : []),
      ...(chart.orders.length ? [key("- -", "buy", "order")] : []),
      ...chart.averages.map((average, i) => key(["\u2014", "- -", "\u00b7\u00b7\u00b7"][i], `average-${i + 1}`, average.name)),
    );
    const choice = find("timeframe");
    const offered = frames.includes(chart.timeframe) ? frames : [...frames, chart.timeframe];
    choice.replaceChildren(...offered.map((text) => element("option", text)));
    choice.value = chart.timeframe;
    root.dataset.state = "ready";
    say();
    changed();
  }

  function fail(text) {
    root.dataset.state = "failed";
    readout.textContent = text;
  }

  /** Show a tool's result; the view's own data has more candles than the text. */
  function take(result) {
    if (result.isError) {
      const text = (result.content ?? []).find((block) => block.type === "text")?.text ?? "";
      let problem = {};
      try { problem = JSON.parse(text) ?? {}; } catch { /* a host's own words */ }
      fail(`No chart: ${[problem.message ?? text, problem.suggestion].filter(Boolean).map(String).join("; ").slice(0, 300)}`);
      return;
    }
    const sent = result._meta?.["grekko/chart"] ?? result.structuredContent?.data;
    if (sent === null || typeof sent !== "object") {
      fail("No chart: the result holds none.");
      return;
    }
    try {
      show(readChart(sent));
    } catch {
      fail("No chart: the result cannot be read.");
    }
  }

  async function call(more) {
    const name = String(host.context.toolInfo?.tool?.name ?? "market_get_chart");
    const [button, choice] = [find("refresh"), find("timeframe")];
    button.disabled = choice.disabled = true;
    try {
      asked = { ...asked, ...more };
      take(await host.request("tools/call", { name, arguments: asked }));
    } catch (error) {
      fail(`No chart: ${error.message}`);
    }
    button.disabled = choice.disabled = false;
  }

  function dress(context) {
    const wanted = context.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = wanted === "dark" ? "dark" : "light";
    root.dataset.mode = context.displayMode === "fullscreen" ? "fullscreen" : "inline";
    for (const [name, value] of Object.entries(context.styles?.variables ?? {})) {
      if (name.startsWith("--") && typeof value === "string") root.style.setProperty(name, value);
    }
    const live = Boolean(host.capabilities.serverTools);
    find("tools").hidden = false;
    find("refresh").hidden = !live;
    find("timeframe").parentElement.hidden = !live;
    find("full").hidden = !(context.availableDisplayModes ?? []).includes("fullscreen");
    find("full").textContent = root.dataset.mode === "fullscreen" ? "Close" : "Full screen";
    redraw();
  }

  const act = (change) => () => {
    if (!view.chart) return;
    change();
    changed();
    say();
  };
  find("in").addEventListener("click", act(() => view.zoom(0.6)));
  find("out").addEventListener("click", act(() => view.zoom(1 / 0.6)));
  find("all").addEventListener("click", act(() => view.all()));
  find("refresh").addEventListener("click", () => call({}));
  find("timeframe").addEventListener("change", (event) => {
    const [, count, unit] = /^(\d+)([smhd])$/.exec(event.target.value) ?? [];
    if (count) call({ timeframe: event.target.value, lookback: `${count * KEPT}${unit}` });
  });
  find("full").addEventListener("click", async () => {
    const mode = root.dataset.mode === "fullscreen" ? "inline" : "fullscreen";
    const granted = await host.request("ui/request-display-mode", { mode }).catch(() => ({}));
    if (granted.mode) dress(host.context = { ...host.context, displayMode: granted.mode });
  });
  find("numbers").addEventListener("toggle", numbers);

  let dragged = null;
  area.addEventListener("pointerdown", (event) => {
    if (!view.chart || event.button) return;
    dragged = event.clientX;
    area.setPointerCapture(event.pointerId);
  });
  area.addEventListener("pointermove", (event) => {
    if (!view.chart) return;
    if (dragged !== null) {
      view.pan((dragged - event.clientX) / view.width);
      dragged = event.clientX;
      changed();
      return;
    }
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    showTip(view.point(x, y), x, y);
    redraw();
    say();
  });
  const drop = () => { dragged = null; };
  area.addEventListener("pointerup", drop);
  area.addEventListener("pointercancel", drop);
  area.addEventListener("pointerleave", () => {
    tip.hidden = true;
    view.leave();
    redraw();
    say();
  });
  area.addEventListener("wheel", (event) => {
    // A page within a conversation must let it scroll: the wheel zooms once the chart was clicked, or with Control.
    if (!view.chart || !(document.activeElement === area || event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    const place = (event.clientX - canvas.getBoundingClientRect().left) / view.width;
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) view.pan(event.deltaX / view.width);
    else view.zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 300))), Math.min(1, Math.max(0, place)));
    changed();
  }, { passive: false });
  area.addEventListener("keydown", (event) => {
    const last = view.chart ? view.chart.bars.length - 1 : 0;
    const keys = {
      ArrowLeft: () => (event.shiftKey ? view.pan(-0.2) : view.step(-1)),
      ArrowRight: () => (event.shiftKey ? view.pan(0.2) : view.step(1)),
      Home: () => { view.choose(0); view.step(0); },
      End: () => { view.choose(last); view.step(0); },
      "+": () => view.zoom(0.6), "=": () => view.zoom(0.6), "-": () => view.zoom(1 / 0.6),
      0: () => view.all(),
      Escape: () => view.leave(),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act(keys[event.key])();
  });

  host.on("context", dress);
  host.on("ui/notifications/tool-input", (params) => { asked = params.arguments ?? {}; });
  host.on("ui/notifications/tool-result", take);
  host.on("ui/notifications/tool-cancelled", () => { if (!view.chart) fail("The chart was cancelled."); });
  new ResizeObserver(redraw).observe(area);
  dress({});
  host.open("grekko-market-chart", "1.0.0").then(() => {
    const main = document.querySelector("main");
    new ResizeObserver(() => {
      const box = main.getBoundingClientRect();
      host.notify("ui/notifications/size-changed", { width: Math.ceil(box.width), height: Math.ceil(box.height) });
    }).observe(main);
  }, (error) => fail(`No chart: ${error.message}`));
})();
