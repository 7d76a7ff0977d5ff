"use strict";
// One WebGL context draws every face: into a canvas that is not in the page, copied to the canvas that shows the face.

const VERTEX = `#version 300 es
in vec3 position, normal, shading; in vec2 uv;
uniform mat3 turn; uniform vec3 centre; uniform float radius, zoom;
out vec3 n, light; out vec2 at;
void main() {
  vec3 p = turn * (position - centre) / radius;  // +x right, +y up, +z to the viewer, who is 6 radii away
  float w = 1.0 - p.z / 6.0;
  gl_Position = vec4(p.xy * zoom, -p.z * 0.5 * w, w);
  n = turn * normal; light = shading; at = uv;
}`;
const FRAGMENT = `#version 300 es
precision highp float;
in vec3 n, light; in vec2 at;
uniform sampler2D albedo; uniform int mode; uniform bool srgb;
out vec4 colour;
vec3 decode(vec3 c) { return mix(c / 12.92, pow((max(c, 0.04045) + 0.055) / 1.055, vec3(2.4)), greaterThan(c, vec3(0.04045))); }
vec3 encode(vec3 c) { return mix(c * 12.92, 1.055 * pow(max(c, 0.0031308), vec3(1.0 / 2.4)) - 0.055, greaterThan(c, vec3(0.0031308))); }
vec3 lit(vec3 base, vec3 by) { return srgb ? encode(decode(base) * by) : base * by; }
void main() {
  vec3 m = normalize(gl_FrontFacing ? n : -n), base = texture(albedo, at).rgb;
  float key = max(dot(m, normalize(vec3(-0.6, 0.7, 0.8))), 0.0), fill = max(dot(m, normalize(vec3(0.9, 0.1, 0.5))), 0.0);
  vec3 lamp = vec3(0.2 + 0.95 * key + 0.16 * fill + 0.05 * m.y);
  colour = vec4(mode == 0 ? lit(base, light) : mode == 1 ? lit(base, lamp) : mode == 2 ? base : encode(vec3(0.52) * lamp), 1.0);
  if (!gl_FrontFacing) colour.rgb = encode(vec3(0.1, 0.105, 0.12) * lamp);  // the inside of the mask
}`;
const MODES = ["photo", "shaded", "albedo", "clay"];
const ANGLES = {front: 0, left: -Math.PI / 2, right: Math.PI / 2};  // left shows the person's left side

/** The numbers that nl3dmm/page/embed.py packed: differences, column after column, deflated. */
async function unpack({bits, columns, data, unit}) {
  const text = atob(data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const Kind = bits === 32 ? Int32Array : Int16Array;
  const steps = new Kind(await new Response(stream).arrayBuffer()), values = new Kind(steps.length);
  const rows = steps.length / columns;
  for (let c = 0; c < columns; c++)
    for (let r = 0; r < rows; r++) values[r * columns + c] = (r ? values[(r - 1) * columns + c] : 0) + steps[c * rows + r];
  return unit ? Float32Array.from(values, (value) => value * unit) : values;
}

/** Unit normals per vertex, weighted by area. */
function normals(p, triangles) {
  const n = new Float32Array(p.length);
  for (let t = 0; t < triangles.length; t += 3) {
    const [a, b, c] = [3 * triangles[t], 3 * triangles[t + 1], 3 * triangles[t + 2]];
    const [ux, uy, uz] = [p[b] - p[a], p[b + 1] - p[a + 1], p[b + 2] - p[a + 2]];
    const [vx, vy, vz] = [p[c] - p[a], p[c + 1] - p[a + 1], p[c + 2] - p[a + 2]];
    const cross = [uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx];
    for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) n[corner + k] += cross[k];
  }
  for (let i = 0; i < n.length; i += 3) {
    const length = Math.hypot(n[i], n[i + 1], n[i + 2]) || 1;
    for (let k = 0; k < 3; k++) n[i + k] /= length;
  }
  return n;
}

const json = (node) => JSON.parse(node.textContent);
const topologies = new Map();

function topology(key) {
  if (!topologies.has(key)) {
    const {triangles, uv} = json(document.getElementById(key));
    topologies.set(key, Promise.all([unpack(triangles), unpack(uv)]));
  }
  return topologies.get(key);
}

async function loadMesh(data) {
  const image = new Image();
  image.src = data.albedo;
  const [[triangles, uv], position, shading] = await Promise.all([
    topology(data.topology), unpack(data.vertices), data.shading ? unpack(data.shading) : null, image.decode()]);
  const low = [Infinity, Infinity, Infinity], high = low.map((value) => -value);
  for (const vertex of triangles) for (let k = 0; k < 3; k++) {
    low[k] = Math.min(low[k], position[3 * vertex + k]);
    high[k] = Math.max(high[k], position[3 * vertex + k]);
  }
  const centre = low.map((value, k) => (value + high[k]) / 2);
  const radius = Math.hypot(...low.map((value, k) => (high[k] - value) / 2)) * 0.88;  // corners of the box are empty
  const attributes = {position, normal: normals(position, triangles), uv, shading: shading || new Float32Array(position.length)};
  return {triangles, attributes, image, centre, radius, srgb: data.encoding === "srgb"};
}

class Painter {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.canvas.addEventListener("webglcontextlost", (event) => { event.preventDefault(); this.ready = false; });
    this.canvas.addEventListener("webglcontextrestored", () => { this.start(); views.forEach((view) => view.redraw()); });
    this.gl = this.canvas.getContext("webgl2", {antialias: true});
    if (this.gl) this.start();
  }

  start() {
    const gl = this.gl, program = this.program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) console.error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    gl.enable(gl.DEPTH_TEST);
    this.buffers = {};
    for (const name of ["position", "normal", "uv", "shading", "triangles"]) this.buffers[name] = gl.createBuffer();
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
    this.mesh = null;
    this.ready = true;
  }

  upload(mesh) {
    const gl = this.gl;
    for (const [name, values] of Object.entries(mesh.attributes)) {
      const slot = gl.getAttribLocation(this.program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(slot);
      gl.vertexAttribPointer(slot, name === "uv" ? 2 : 3, gl.FLOAT, false, 0, 0);
    }
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers.triangles);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mesh.triangles, gl.STATIC_DRAW);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, mesh.image);  // first row: v = 0
    gl.generateMipmap(gl.TEXTURE_2D);
    this.mesh = mesh;
  }

  /** Fill `target` with a face seen as `pose` says. */
  paint(target, mesh, {yaw, pitch, zoom, mode}) {
    const gl = this.gl, side = Math.round(target.clientWidth * Math.min(devicePixelRatio || 1, 2));
    if (!this.ready || !side) return;
    if (this.mesh !== mesh) this.upload(mesh);
    if (target.width !== side || target.height !== side) target.width = target.height = side;
    if (this.canvas.width !== side || this.canvas.height !== side) this.canvas.width = this.canvas.height = side;
    const [sy, cy, sp, cp] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)];
    const place = (name) => gl.getUniformLocation(this.program, name);
    gl.viewport(0, 0, side, side);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniformMatrix3fv(place("turn"), false, [cy, sp * sy, -cp * sy, 0, cp, sp, sy, -sp * cy, cp * cy]);
    gl.uniform3fv(place("centre"), mesh.centre);
    gl.uniform1f(place("radius"), mesh.radius);
    gl.uniform1f(place("zoom"), zoom);
    gl.uniform1i(place("mode"), MODES.indexOf(mode));
    gl.uniform1i(place("srgb"), mesh.srgb);
    gl.drawElements(gl.TRIANGLES, mesh.triangles.length, gl.UNSIGNED_INT, 0);
    const context = target.getContext("2d");
    context.clearRect(0, 0, side, side);
    context.drawImage(this.canvas, 0, 0);
  }
}

class View {
  constructor(card) {
    this.canvas = card.querySelector(".viewer canvas");
    this.data = card.querySelector(".mesh");
    this.modes = [...card.querySelectorAll("[data-mode]")];
    this.pose = {yaw: 0, pitch: 0, zoom: 1, mode: this.modes[0].dataset.mode};
    this.fingers = new Map();
    for (const button of this.modes) button.onclick = () => this.setMode(button.dataset.mode);
    for (const button of card.querySelectorAll("[data-view]")) button.onclick = () => this.face(button.dataset.view);
    const canvas = this.canvas;
    canvas.onpointerdown = (event) => { this.fingers.set(event.pointerId, event); canvas.setPointerCapture(event.pointerId); };
    canvas.onpointerup = canvas.onpointercancel = (event) => this.fingers.delete(event.pointerId);
    canvas.onpointermove = (event) => this.drag(event);
    canvas.onkeydown = (event) => this.key(event);
    canvas.ondblclick = () => this.face("front");
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return;  // until it is clicked, the page scrolls
      event.preventDefault();
      this.move(0, 0, Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)));
    }, {passive: false});
  }

  mesh() { return this.loaded ||= loadMesh(json(this.data)); }
  release() { this.loaded = null; this.canvas.width = this.canvas.height = 0; }  // may be one of hundreds

  redraw() {
    if (!this.seen || this.waiting) return;
    this.waiting = requestAnimationFrame(async () => {
      const mesh = await this.mesh();
      this.waiting = 0;
      if (this.seen) painter.paint(this.canvas, mesh, this.pose);
    });
  }

  move(yaw, pitch, zoom = 1) {
    this.pose.yaw += yaw;
    this.pose.pitch = Math.max(-1.5, Math.min(1.5, this.pose.pitch + pitch));
    this.pose.zoom = Math.max(0.5, Math.min(8, this.pose.zoom * zoom));
    this.redraw();
  }

  face(side) { Object.assign(this.pose, {yaw: ANGLES[side], pitch: 0, zoom: 1}); this.redraw(); }

  setMode(mode) {
    this.pose.mode = mode;
    for (const button of this.modes) button.setAttribute("aria-pressed", button.dataset.mode === mode);
    this.redraw();
  }

  drag(event) {
    const last = this.fingers.get(event.pointerId);
    if (!last) return;
    const other = [...this.fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
    const gap = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY) || 1;
    const turn = Math.PI / this.canvas.clientWidth;  // across the whole canvas: half a turn
    if (other) this.move(0, 0, gap(event) / gap(last));
    else this.move((event.clientX - last.clientX) * turn, (event.clientY - last.clientY) * turn);
    this.fingers.set(event.pointerId, event);
  }

  key(event) {
    const turns = {ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15]};
    const zooms = {"+": 1.15, "=": 1.15, "-": 1 / 1.15};
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (turns[event.key]) this.move(...turns[event.key]);
    else if (zooms[event.key]) this.move(0, 0, zooms[event.key]);
    else if (event.key === "0") this.face("front");
    else return;
    event.preventDefault();
  }
}

/** Sort the rows by a column; what has no value stays last, and a second click turns the order around. */
function sortBy(heading) {
  const table = heading.closest("table"), column = heading.cellIndex;
  const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const cell of heading.parentNode.cells) if (cell.scope) cell.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const value = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => a === "" || b === "" ? (a === "") - (b === "")
    : direction * (isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, {numeric: true}) : a - b);
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
}

function watch(nodes, margin, change) {
  const observer = new IntersectionObserver((entries) => entries.forEach((entry) => change(entry.target, entry.isIntersecting)),
    {rootMargin: margin});
  nodes.forEach((node) => observer.observe(node));
}

function start3D() {
  document.documentElement.classList.remove("no-3d");
  for (const card of document.querySelectorAll(".card")) if (card.querySelector(".mesh")) views.set(card.id, new View(card));
  const owner = new Map([...views.values()].map((view) => [view.canvas, view]));
  watch([...owner.keys()], "200px", (canvas, seen) => {
    const view = owner.get(canvas);
    view.seen = seen;
    if (seen) view.redraw(); else view.release();
  });
  watch(document.querySelectorAll(".thumb"), "100px", async (thumb, seen) => {
    const view = views.get(thumb.dataset.face);
    if (!seen || thumb.done || !view) return;
    thumb.done = true;
    painter.paint(thumb, await view.mesh(), {yaw: 0, pitch: 0, zoom: 1.2, mode: view.modes[0].dataset.mode});
    if (!view.seen) view.loaded = null;
  });
  addEventListener("resize", () => views.forEach((view) => view.redraw()));
}

const views = new Map(), painter = new Painter();
if (painter.gl && "DecompressionStream" in window) start3D();
for (const button of document.querySelectorAll("th button")) button.onclick = () => sortBy(button.parentNode);
const large = document.getElementById("large");
for (const button of document.querySelectorAll("button.panel")) button.onclick = () => {
  large.replaceChildren(button.firstChild.cloneNode());
  large.showModal();
};
large.onclick = () => large.close();
