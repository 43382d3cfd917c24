"use strict";
// Points in three dimensions that turn under the hand, in place of the drawing that stands there.
for (const box of document.querySelectorAll(".rf-orbit:not([data-live])")) {
  box.dataset.live = "";
  const scene = JSON.parse(box.dataset.scene);
  const svg = box.querySelector("svg");
  const [, , wide, high] = svg.getAttribute("viewBox").split(" ").map(Number);
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", svg.getAttribute("aria-label"));
  canvas.style.aspectRatio = `${wide} / ${high}`;
  const context = canvas.getContext("2d");
  let { yaw, pitch } = scene, held = null;

  // Colours are the drawing's own: a sample of each class is read off the page.
  const sample = document.createElementNS(svg.namespaceURI, "path");
  const colour = (kind) => {
    const ramp = /r(\d+)$/.exec(kind);
    if (ramp) return scene.ramp[Number(ramp[1])];
    sample.setAttribute("class", `point ${kind}`);
    return getComputedStyle(sample).stroke;
  };
  const soft = () => getComputedStyle(svg.querySelector("text")).fill;

  function turn([x, y, z]) {
    const right = Math.cos(yaw) * x + Math.sin(yaw) * z, away = -Math.sin(yaw) * x + Math.cos(yaw) * z;
    return [right, Math.cos(pitch) * y - Math.sin(pitch) * away, Math.sin(pitch) * y + Math.cos(pitch) * away];
  }
  function draw() {
    const ratio = devicePixelRatio || 1, { width } = canvas.getBoundingClientRect();
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = (width * high / wide) * ratio;
    const unit = (width * ratio) / wide;
    context.setTransform(unit, 0, 0, unit, 0, 0);
    const place = ([x, y]) => [wide / 2 + x * 175, high / 2 - y * 175];
    svg.append(sample);
    const colours = scene.kinds.map(colour);
    context.font = "12px system-ui, sans-serif";
    context.strokeStyle = context.fillStyle = soft();
    sample.remove();
    context.globalAlpha = 1;
    scene.axes.forEach((name, i) => {
      const tip = [0, 1, 2].map((k) => (k === i ? 1.1 : 0));
      const [ax, ay] = place(turn(tip.map((v) => -v))), [bx, by] = place(turn(tip));
      context.lineWidth = 0.75;
      context.beginPath();
      context.moveTo(ax, ay);
      context.lineTo(bx, by);
      context.stroke();
      context.fillText(name, Math.min(bx + 4, wide - 60), by - 4);
    });
    const seen = scene.points.map((p, i) => [...turn(p), scene.group[i]]).sort((a, b) => a[2] - b[2]);
    const radius = seen.length > 800 ? 2 : 3;
    for (const point of seen) {
      const [x, y] = place(point), near = 1 + 0.25 * point[2];
      context.globalAlpha = 0.55 + 0.15 * (1 + point[2]);
      context.fillStyle = colours[point[3]];
      context.beginPath();
      if (scene.kinds[point[3]].startsWith("square")) context.rect(x - radius * near, y - radius * near, 2 * radius * near, 2 * radius * near);
      else context.arc(x, y, radius * near, 0, 7);
      context.fill();
    }
  }
  canvas.addEventListener("pointerdown", (event) => {
    held = [event.clientX, event.clientY, yaw, pitch];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return;
    yaw = held[2] + (event.clientX - held[0]) / 120;
    pitch = Math.max(-1.5, Math.min(1.5, held[3] + (event.clientY - held[1]) / 120));
    draw();
  });
  canvas.addEventListener("pointerup", () => { held = null; });
  canvas.addEventListener("pointercancel", () => { held = null; });
  svg.style.position = "absolute";
  svg.style.visibility = "hidden";
  svg.style.height = 0;
  box.append(canvas);
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new MutationObserver(draw).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
}
