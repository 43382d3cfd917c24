"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const { history, judged, phases, latent } = JSON.parse($("report-data").textContent);
  const root = document.documentElement;
  const tip = $("tip");

  // --- theme ---------------------------------------------------------------------------------
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : wantsDark.matches);
  const button = $("theme");
  const name = () => (button.textContent = isDark() ? "Light" : "Dark");
  if (location.hash === "#dark" || location.hash === "#light") {
    root.dataset.theme = location.hash.slice(1);
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
    draw();
  });
  wantsDark.addEventListener("change", () => { name(); draw(); });

  // --- the tooltip ---------------------------------------------------------------------------
  function showTip(x, y, pairs, picture) {
    tip.replaceChildren(...(picture ? [picture] : []), ...pairs.map(([key, value]) => {
      const line = document.createElement("div");
      const label = document.createElement("span");
      label.textContent = key;
      line.append(label, document.createTextNode(value));
      return line;
    }));
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const left = x + 16 + width > innerWidth ? x - 16 - width : x + 16;
    const top = y + 16 + height > innerHeight ? y - 16 - height : y + 16;
    tip.style.left = `${Math.max(4, Math.min(left, innerWidth - width - 4))}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  }
  const hideTip = () => { tip.hidden = true; };
  addEventListener("scroll", hideTip, { passive: true });

  function format(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    const text = Number.isInteger(value) && size < 1e6 ? String(value)
      : size >= 1e6 || (size > 0 && size < 1e-4) ? value.toExponential(3)
      : size >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
    return text.replaceAll("-", "−");
  }

  // --- loss curves: the numbers under the pointer -----------------------------------------------
  for (const svg of document.querySelectorAll("svg[data-term]")) {
    const chart = svg.dataset, term = chart.term;
    svg.addEventListener("pointermove", (event) => {
      const frame = svg.getBoundingClientRect();
      const at = ((event.clientX - frame.left) / frame.width) * 400;
      const share = (at - chart.start) / (chart.end - chart.start);
      const step = Number(chart.low) + share * (chart.high - chart.low);
      const row = history.reduce((best, r) =>
        Math.abs(r.step - step) < Math.abs(best.step - step) ? r : best);
      showTip(event.clientX, event.clientY, [
        ["step", format(row.step)],
        ["epoch", format(row.epoch)],
        ...("phase" in row && phases[row.phase] ? [["phase", phases[row.phase]]] : []),
        ["training batches", format(row[`train_${term}`])],
        [judged, format(row[`valid_${term}`])],
      ]);
    });
    svg.addEventListener("pointerleave", hideTip);
  }

  // --- the latent explorer -----------------------------------------------------------------------
  // Okabe and Ito's colours for all eyes, a shape for every further eight; viridis for numbers.
  const HUES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", null, "#8C6BB1"];
  const RAMP = ["#440154", "#472f7d", "#39568c", "#2a788e", "#1f988b", "#35b779", "#83d44b", "#fde725"];
  const canvas = $("scatter");
  const context = canvas.getContext("2d");
  const pick = { x: $("axis-x"), y: $("axis-y"), colour: $("colour") };
  const count = latent.rows.length;
  const sheet = $("sheet");
  let view = null, alone = null, marked = -1, drag = null, places = [];

  const theme = (key) => getComputedStyle(root).getPropertyValue(key).trim();
  function fill(select, things, chosen) {
    select.replaceChildren(...things.map((thing, i) => new Option(thing.name, i)));
    select.value = chosen;
  }
  const axis = (key) => latent.axes[pick[key].value];
  const colouring = () => latent.colours[pick.colour.value];

  function hue(level, info) {
    if (level < 0 || (info.rest && level === info.levels.length - 1)) return theme("--soft");
    return HUES[level % HUES.length] || theme("--ink");
  }
  function ramp(share) {
    // The end that the background swallows is left out.
    const [from, to] = isDark() ? [0.14, 1] : [0, 0.93];
    const at = (from + share * (to - from)) * (RAMP.length - 1);
    const i = Math.min(RAMP.length - 2, Math.floor(at));
    const part = (hex, k) => parseInt(hex.slice(1 + 2 * k, 3 + 2 * k), 16);
    const mix = [0, 1, 2].map((k) =>
      Math.round(part(RAMP[i], k) + (at - i) * (part(RAMP[i + 1], k) - part(RAMP[i], k))));
    return `rgb(${mix})`;
  }
  function spread(values) {
    const sorted = values.filter((v) => v !== null).sort((a, b) => a - b);
    if (!sorted.length) return [0, 1];
    const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
    return [at(0.02), at(0.98)];
  }
  function range(values) {
    const known = values.filter((v) => v !== null);
    let low = Math.min(...known), high = Math.max(...known);
    if (!known.length) [low, high] = [0, 1];
    const margin = (high - low) * 0.05 || Math.abs(low) * 0.1 || 1;
    return [low - margin, high + margin];
  }
  function ticks([low, high], most) {
    const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= raw * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(Number((i * step).toPrecision(12)));
    return found;
  }

  function shape(level, x, y, r) {
    const kind = Math.floor(Math.max(0, level) / HUES.length) % 3;
    context.beginPath();
    if (kind === 0) context.arc(x, y, r, 0, 7);
    else if (kind === 1) context.rect(x - r * 0.9, y - r * 0.9, r * 1.8, r * 1.8);
    else {
      context.moveTo(x, y - r * 1.3);
      context.lineTo(x + r * 1.2, y + r * 0.9);
      context.lineTo(x - r * 1.2, y + r * 0.9);
      context.closePath();
    }
  }

  function draw() {
    const ratio = devicePixelRatio || 1, { width, height } = canvas.getBoundingClientRect();
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const xs = axis("x").values, ys = axis("y").values;
    const [x0, x1] = view ? view.x : range(xs), [y0, y1] = view ? view.y : range(ys);
    const box = { left: 52, right: width - 8, top: 8, bottom: height - 40 };
    const px = (v) => box.left + ((v - x0) / (x1 - x0)) * (box.right - box.left);
    const py = (v) => box.bottom - ((v - y0) / (y1 - y0)) * (box.bottom - box.top);
    drawAxes(box, [x0, x1], [y0, y1], px, py);
    context.save();
    context.beginPath();
    context.rect(box.left, box.top, box.right - box.left, box.bottom - box.top);
    context.clip();
    drawPoints(xs.map((v) => (v === null ? null : px(v))), ys.map((v) => (v === null ? null : py(v))));
    if (drag && drag.moved) {
      context.strokeStyle = theme("--ink");
      context.strokeRect(drag.x, drag.y, drag.toX - drag.x, drag.toY - drag.y);
    }
    context.restore();
    canvas.scale = { box, x: [x0, x1], y: [y0, y1] };
  }
  function drawAxes(box, xr, yr, px, py) {
    context.font = "12px system-ui, sans-serif";
    context.fillStyle = theme("--soft");
    context.strokeStyle = theme("--rule");
    context.lineWidth = 1;
    const wide = box.right - box.left;
    context.textAlign = "center";
    for (const t of ticks(xr, Math.max(5, Math.min(8, wide / 90)))) {
      line(px(t), box.top, px(t), box.bottom);
      context.fillText(format(t), px(t), box.bottom + 16);
    }
    context.textAlign = "right";
    for (const t of ticks(yr, 6)) {
      line(box.left, py(t), box.right, py(t));
      context.fillText(format(t), box.left - 6, py(t) + 4);
    }
    context.textAlign = "right";
    context.fillText(fit(axis("x").name, wide) + " →", box.right, box.bottom + 34);
    context.save();
    context.textAlign = "left";
    context.fillText("↑ " + fit(axis("y").name, wide * 0.45), 0, box.bottom + 34);
    context.restore();
  }
  function line(a, b, c, d) {
    context.beginPath();
    context.moveTo(Math.round(a) + 0.5, Math.round(b) + 0.5);
    context.lineTo(Math.round(c) + 0.5, Math.round(d) + 0.5);
    context.stroke();
  }
  function fit(text, width) {
    return text.length * 7 > width ? text.slice(0, Math.max(6, width / 7)) + "…" : text;
  }
  function drawPoints(xs, ys) {
    const info = colouring(), [low, high] = spread(info.kind === "number" ? info.values : []);
    const r = count > 800 ? 3 : count > 200 ? 3.5 : 4.5;
    places = [];
    for (let i = 0; i < count; i++) {
      if (xs[i] === null || ys[i] === null) continue;
      const v = info.values[i];
      const shown = info.kind !== "class" || alone === null || v === alone;
      if (shown) places.push([xs[i], ys[i], i]);
      context.globalAlpha = shown ? 0.82 : 0.08;
      if (info.kind === "class") {
        shape(v, xs[i], ys[i], r);
        context.fillStyle = context.strokeStyle = hue(v, info);
      } else {
        shape(0, xs[i], ys[i], r);
        const share = high > low ? (v - low) / (high - low) : 0.5;
        context.fillStyle = context.strokeStyle =
          v === null ? theme("--soft") : ramp(Math.max(0, Math.min(1, share)));
      }
      if (v === null || v === -1) context.stroke(); else context.fill();
    }
    context.globalAlpha = 1;
    if (marked >= 0 && xs[marked] !== null) {
      shape(0, xs[marked], ys[marked], r + 3);
      context.lineWidth = 2;
      context.strokeStyle = theme("--ink");
      context.stroke();
    }
  }

  function key() {
    const info = colouring();
    const parts = [];
    if (info.kind === "number") {
      const [low, high] = spread(info.values);
      const bar = document.createElement("span");
      bar.className = "ramp";
      bar.style.background = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(ramp)})`;
      parts.push(text(`≤ ${format(low)}`), bar, text(`≥ ${format(high)}`));
      if (info.values.includes(null)) parts.push(text("○ missing"));
    } else {
      info.levels.forEach((level, i) => parts.push(entry(level, i, info)));
      if (info.values.includes(-1)) parts.push(entry("missing", -1, info));
    }
    $("key").replaceChildren(...parts);
  }
  function text(value) {
    const span = document.createElement("span");
    span.textContent = value;
    return span;
  }
  function entry(label, level, info) {
    const item = document.createElement("button");
    item.type = "button";
    item.setAttribute("aria-pressed", String(alone === level));
    const mark = text(level < 0 ? "○" : "●■▲"[Math.floor(level / HUES.length) % 3]);
    mark.style.color = hue(level, info);
    item.append(mark, text(label));
    item.addEventListener("click", () => {
      alone = alone === level ? null : level;
      key();
      draw();
    });
    return item;
  }

  function nearest(x, y) {
    let best = null, least = 20 * 20;
    for (const [a, b, i] of places) {
      const far = (a - x) ** 2 + (b - y) ** 2;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }
  function describe(i) {
    const shown = latent.colours.slice(0, 14).map((c) => {
      const v = c.values[i];
      return [clip(c.name), c.kind === "class" ? (v < 0 ? "missing" : clip(c.levels[v])) : v === null ? "missing" : format(v)];
    });
    return [[latent.label, String(latent.rows[i])], ...shown];
  }
  const clip = (value) => (value.length > 32 ? value.slice(0, 31) + "…" : value);
  function thumbnail(i) {
    if (!latent.sheet) return null;
    const [columns, width, height] = latent.sheet;
    const small = document.createElement("canvas");
    small.width = width;
    small.height = height;
    small.style.width = "96px";
    small.getContext("2d").drawImage(
      sheet, (i % columns) * width, Math.floor(i / columns) * height, width, height, 0, 0, width, height);
    return small;
  }
  function point(event) {
    const frame = canvas.getBoundingClientRect();
    return [event.clientX - frame.left, event.clientY - frame.top];
  }
  function hover(event) {
    const found = nearest(...point(event));
    if (found !== null) showTip(event.clientX, event.clientY, describe(found), thumbnail(found));
    else hideTip();
    if ((found ?? -1) !== marked) {
      marked = found ?? -1;
      draw();
    }
  }
  canvas.addEventListener("pointerdown", (event) => {
    const [x, y] = point(event);
    if (event.pointerType === "mouse") drag = { x, y, toX: x, toY: y, moved: false };
    else hover(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) return hover(event);
    [drag.toX, drag.toY] = point(event);
    drag.moved = Math.abs(drag.toX - drag.x) > 6 && Math.abs(drag.toY - drag.y) > 6;
    hideTip();
    draw();
  });
  addEventListener("pointerup", () => {
    if (drag && drag.moved) enlarge(drag);
    drag = null;
    draw();
  });
  canvas.addEventListener("pointerleave", () => {
    hideTip();
    marked = -1;
    draw();
  });
  canvas.addEventListener("dblclick", whole);
  $("reset").addEventListener("click", whole);
  function enlarge(area) {
    const { box, x, y } = canvas.scale;
    const share = (v, from, to) => Math.max(0, Math.min(1, (v - from) / (to - from)));
    const across = [area.x, area.toX].map((v) => x[0] + share(v, box.left, box.right) * (x[1] - x[0]));
    const up = [area.y, area.toY].map((v) => y[1] - share(v, box.top, box.bottom) * (y[1] - y[0]));
    view = { x: across.sort((a, b) => a - b), y: up.sort((a, b) => a - b) };
    $("reset").disabled = false;
  }
  function whole() {
    view = null;
    $("reset").disabled = true;
    draw();
  }

  $("explorer").hidden = false;
  name();
  fill(pick.x, latent.axes, 0);
  fill(pick.y, latent.axes, 1);
  fill(pick.colour, latent.colours, latent.colour);
  pick.x.addEventListener("change", whole);
  pick.y.addEventListener("change", whole);
  pick.colour.addEventListener("change", () => { alone = null; key(); draw(); });
  button.addEventListener("click", key);
  new ResizeObserver(draw).observe(canvas);
  key();
  draw();
})();
