"use strict";

/** The host's side of the page: JSON-RPC 2.0 over postMessage, as MCP Apps of 2026-01-26 describe it. */
class Host {
  #next = 1;
  #waiting = new Map();
  #listeners = new Map();
  context = {};
  capabilities = {};

  constructor() {
    addEventListener("message", (event) => {
      // Anybody can post to a window; only the window that shows this page is listened to.
      if (event.source === window.parent && event.data?.jsonrpc === "2.0") this.#receive(event.data);
    });
  }

  /** Call `listener(params)` when a notification arrives. */
  on(method, listener) {
    this.#listeners.set(method, listener);
  }

  notify(method, params = {}) {
    this.#post({ method, params });
  }

  /** Resolve to the result; reject with the host's message or after `patience` milliseconds. */
  request(method, params = {}, patience = 30_000) {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#settle(id, { error: { message: "the host does not answer" } }), patience);
      this.#waiting.set(id, { resolve, reject, timer });
      this.#post({ id, method, params });
    });
  }

  /** Introduce the page; afterwards the host sends the tool's input and result. */
  async open(name, version) {
    const found = await this.request("ui/initialize", {
      appInfo: { name, version },
      appCapabilities: { availableDisplayModes: ["inline", "fullscreen"] },
      protocolVersion: "2026-01-26",
    });
    this.capabilities = found.hostCapabilities ?? {};
    this.context = found.hostContext ?? {};
    this.on("ui/notifications/host-context-changed", (changed) => {
      this.context = { ...this.context, ...changed };
      this.#listeners.get("context")?.(this.context);
    });
    this.notify("ui/notifications/initialized");
    this.#listeners.get("context")?.(this.context);
  }

  #post(message) {
    // A sandboxed page has no origin to name; what is sent holds nothing but the chart's own arguments.
    window.parent.postMessage({ jsonrpc: "2.0", ...message }, "*");
  }

  #receive(message) {
    if (typeof message.method !== "string") {
      this.#settle(message.id, message);
    } else if (message.id === undefined) {
      this.#listeners.get(message.method)?.(message.params ?? {});
    } else if (message.method === "ping" || message.method === "ui/resource-teardown") {
      this.#post({ id: message.id, result: {} });
    } else {
      this.#post({ id: message.id, error: { code: -32601, message: "this page serves no such method" } });
    }
  }

  #settle(id, { result, error }) {
    const waiting = this.#waiting.get(id);
    if (!waiting) return;
    this.#waiting.delete(id);
    clearTimeout(waiting.timer);
    if (error) waiting.reject(new Error(String(error.message ?? "refused")));
    else waiting.resolve(result ?? {});
  }
}
