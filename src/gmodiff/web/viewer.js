// Draws a picture's tiles with WebGL 2: the light at any exposure, what a screen of any headroom shows, a photo beside it, overlays.
// Only tiles that are seen are fetched, at the level of the pyramid that the zoom needs.

const VERTEX = `#version 300 es
in vec2 corner;
uniform vec4 place;   // left, top, width, height of the tile in picture pixels
uniform vec3 view;    // centre in picture pixels, screen pixels per picture pixel
uniform vec2 canvas;  // screen pixels
out vec2 at;
void main() {
  at = corner;
  vec2 p = (place.xy + corner * place.zw - view.xy) * view.z / (0.5 * canvas);
  gl_Position = vec4(p.x, -p.y, 0.0, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
precision highp sampler2D;
in vec2 at;
out vec4 seen;
uniform int kind;            // 0 light, 1 base and gain, 2 a photo's codes
uniform sampler2D picture, gain, labels;
uniform mat3 baseToGain, toScreen;
uniform vec3 baseOffset, alternateOffset;
uniform float weight, scale; // of the gain (ISO 21496-1, equation 4); what light is multiplied by
uniform int overlay;         // 0 none, 1 provenance, 2 doubt
vec3 decoded(vec3 c) { return mix(c / 12.92, pow((c + 0.055) / 1.055, vec3(2.4)), step(0.04045, c)); }
vec3 encoded(vec3 c) { c = clamp(c, 0.0, 1.0); return mix(12.92 * c, 1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c)); }
void main() {
  vec3 light = texture(picture, at).rgb;
  if (kind == 1) {
    vec3 base = baseToGain * decoded(light);
    light = (base + baseOffset) * exp2(weight * texture(gain, at).rgb) - alternateOffset;  // equation 5
  } else if (kind == 2) light = decoded(light);
  vec3 shown = encoded(toScreen * light * scale);
  if (overlay > 0) {
    vec2 l = texture(labels, at).rg;
    int label = int(l.r * 255.0 + 0.5);
    if (overlay == 1 && label == 1) shown = mix(shown, vec3(0.0, 0.447, 0.698), 0.6);
    if (overlay == 1 && label == 2) shown = mix(shown, vec3(0.902, 0.624, 0.0), 0.6);
    if (overlay == 2) shown = mix(shown, vec3(0.93, 0.2, 0.65), 0.8 * l.g);
  }
  seen = vec4(shown, 1.0);
}`;

const IDENTITY = [1, 0, 0, 0, 1, 0, 0, 0, 1];
const MOST_BYTES = 800e6, FETCHED_AT_ONCE = 6;
const SLOW_MS = 40, COARSEST = 4, REST_MS = 250;  // frames slower than this are drawn coarser while something moves, and whole again at rest

export class Viewer {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;  // called when zoom, place or divider change
    this.picture = null;
    this.state = { mode: 'light', exposure: 0, headroom: 3, dim: true, overlay: '', beside: '', split: 0.5 };
    this.view = { x: 0, y: 0, zoom: 1 };
    this.tiles = new Map();
    this.waiting = [];
    this.fetching = 0;
    this.clock = 0;
    this.size = { width: canvas.width, height: canvas.height };  // of the canvas in screen pixels; what is drawn may be coarser
    this.coarse = 1;
    this.paces = [];
    this.gl = canvas.getContext('webgl2', { antialias: false, alpha: false, powerPreference: 'high-performance' });
    if (this.gl) this.prepare();
    canvas.addEventListener('webglcontextlost', (event) => event.preventDefault());
    canvas.addEventListener('webglcontextrestored', () => { this.tiles.clear(); this.prepare(); this.draw(); });
    new ResizeObserver(() => this.resized()).observe(canvas);
    this.listen();
  }

  prepare() {
    const gl = this.gl, program = gl.createProgram();
    for (const [type, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.bindAttribLocation(program, 0, 'corner');
    gl.linkProgram(program);
    gl.useProgram(program);
    const places = {};
    for (const name of ['place', 'view', 'canvas', 'kind', 'picture', 'gain', 'labels', 'baseToGain', 'toScreen', 'baseOffset', 'alternateOffset', 'weight', 'scale', 'overlay']) places[name] = gl.getUniformLocation(program, name);
    this.uniform = places;
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([0, 0, 1, 0, 0, 1, 1, 1]), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 0, 0);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    ['picture', 'gain', 'labels'].forEach((name, unit) => gl.uniform1i(places[name], unit));
    this.blank = this.texture({ channels: 2, half: false }, 1, 1, new Uint8Array([0, 0]));
  }

  // Another picture; the place looked at stays where the size does.
  show(picture) {
    const before = this.picture;
    this.picture = picture;
    this.forget();
    if (!picture) return;
    if (!before || before.width !== picture.width || before.height !== picture.height) this.fit();
    this.draw();
  }

  forget() {
    for (const tile of this.tiles.values()) if (tile.texture) this.gl.deleteTexture(tile.texture);
    this.tiles.clear();
    this.waiting = [];
  }

  set(changes) { Object.assign(this.state, changes); this.draw(); }

  // ---- place and zoom -----------------------------------------------------------------------------------------------

  resized() {
    const ratio = window.devicePixelRatio || 1, box = this.canvas.getBoundingClientRect();
    const fitted = this.picture && Math.abs(this.view.zoom - this.fitting()) < 1e-6;
    if (!box.width) return;  // hidden
    this.size = { width: Math.max(1, Math.round(box.width * ratio)), height: Math.max(1, Math.round(box.height * ratio)) };
    if (fitted) this.fit();
    this.draw(true);
  }

  fitting() { return Math.min(this.size.width / this.picture.width, this.size.height / this.picture.height); }

  fit() {
    if (!this.picture) return;
    this.view = { x: this.picture.width / 2, y: this.picture.height / 2, zoom: this.fitting() };
    this.draw();
  }

  // zoom: screen pixels per picture pixel; x, y: a place on the canvas, in its pixels, that stays where it is.
  zoomTo(zoom, x = this.size.width / 2, y = this.size.height / 2) {
    if (!this.picture) return;
    const held = this.pictureAt(x, y), least = Math.min(this.fitting(), 1) / 2;
    this.view.zoom = Math.min(32, Math.max(least, zoom));
    this.view.x = held.x - (x - this.size.width / 2) / this.view.zoom;
    this.view.y = held.y - (y - this.size.height / 2) / this.view.zoom;
    this.moved();
  }

  moveBy(dx, dy) { this.view.x -= dx / this.view.zoom; this.view.y -= dy / this.view.zoom; this.moved(); }

  moved() {
    this.view.x = Math.min(this.picture.width, Math.max(0, this.view.x));
    this.view.y = Math.min(this.picture.height, Math.max(0, this.view.y));
    // At whole multiples pixels fall on pixels.
    if (this.view.zoom >= 1 && Number.isInteger(this.view.zoom)) {
      const snap = (centre, size) => (Math.round((centre * this.view.zoom - size / 2)) + size / 2) / this.view.zoom;
      this.view.x = snap(this.view.x, this.size.width);
      this.view.y = snap(this.view.y, this.size.height);
    }
    this.draw();
  }

  pictureAt(x, y) {
    return { x: this.view.x + (x - this.size.width / 2) / this.view.zoom, y: this.view.y + (y - this.size.height / 2) / this.view.zoom };
  }

  onCanvas(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) * this.size.width / box.width, y: (event.clientY - box.top) * this.size.height / box.height };
  }

  listen() {
    const canvas = this.canvas, fingers = new Map();
    let dividing = false, spread = 0;
    const nearDivider = (at) => this.state.beside !== '' && Math.abs(at.x - this.state.split * this.size.width) < 14 * (window.devicePixelRatio || 1);
    canvas.addEventListener('pointerdown', (event) => {
      if (!this.picture) return;
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, this.onCanvas(event));
      dividing = fingers.size === 1 && nearDivider(this.onCanvas(event));
      spread = 0;
    });
    canvas.addEventListener('pointermove', (event) => {
      if (!this.picture) return;
      const now = this.onCanvas(event), before = fingers.get(event.pointerId);
      canvas.classList.toggle('dividing', dividing || nearDivider(now));
      if (this.pointed) this.pointed(this.pictureAt(now.x, now.y));
      if (!before) return;
      fingers.set(event.pointerId, now);
      if (dividing) { this.state.split = Math.min(1, Math.max(0, now.x / this.size.width)); this.draw(); return; }
      if (fingers.size === 2) {
        const [a, b] = [...fingers.values()], apart = Math.hypot(a.x - b.x, a.y - b.y);
        if (spread) this.zoomTo(this.view.zoom * apart / spread, (a.x + b.x) / 2, (a.y + b.y) / 2);
        spread = apart;
        this.moveBy((now.x - before.x) / 2, (now.y - before.y) / 2);
      } else this.moveBy(now.x - before.x, now.y - before.y);
    });
    for (const name of ['pointerup', 'pointercancel']) canvas.addEventListener(name, (event) => { fingers.delete(event.pointerId); dividing = false; spread = 0; });
    canvas.addEventListener('pointerleave', () => { if (this.pointed) this.pointed(null); });
    canvas.addEventListener('wheel', (event) => {
      if (!this.picture) return;
      event.preventDefault();
      const at = this.onCanvas(event);
      this.zoomTo(this.view.zoom * Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), at.x, at.y);
    }, { passive: false });
    canvas.addEventListener('dblclick', (event) => {
      const at = this.onCanvas(event);
      if (this.view.zoom === 1) this.fit(); else this.zoomTo(1, at.x, at.y);
    });
    canvas.addEventListener('keydown', (event) => {
      if (!this.picture || event.ctrlKey || event.metaKey || event.altKey) return;
      const far = 0.15 * Math.min(this.size.width, this.size.height);
      const keys = {
        ArrowLeft: () => this.moveBy(far, 0), ArrowRight: () => this.moveBy(-far, 0), ArrowUp: () => this.moveBy(0, far), ArrowDown: () => this.moveBy(0, -far),
        '+': () => this.zoomTo(this.view.zoom * 1.5), '=': () => this.zoomTo(this.view.zoom * 1.5), '-': () => this.zoomTo(this.view.zoom / 1.5),
        0: () => this.fit(), 1: () => this.zoomTo(1),
      };
      if (!keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
      if (this.pointed) this.pointed({ x: this.view.x, y: this.view.y });  // without a mouse the middle is read
    });
  }

  // ---- tiles --------------------------------------------------------------------------------------------------------

  kindOf(layer) {
    return layer === 'radiance' || layer === 'gain' ? { channels: 3, half: true } : layer === 'labels' ? { channels: 2, half: false } : { channels: 3, half: false };
  }

  texture(kind, width, height, data) {
    const gl = this.gl, texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    const [inside, format] = kind.half ? [gl.RGB16F, gl.RGB] : kind.channels === 2 ? [gl.RG8, gl.RG] : [gl.RGB8, gl.RGB];
    gl.texImage2D(gl.TEXTURE_2D, 0, inside, width, height, 0, format, kind.half ? gl.HALF_FLOAT : gl.UNSIGNED_BYTE, data);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
    return texture;
  }

  // The texture of a tile, or null while it is on its way.
  tile(layer, level, column, row) {
    const key = this.key(layer, level, column, row);
    let tile = this.tiles.get(key);
    if (!tile) {
      tile = { texture: null, used: 0 };
      this.tiles.set(key, tile);
      this.waiting.push({ key, tile, layer, level, column, row });
    }
    tile.used = this.clock;
    return tile.texture;
  }

  fetchNext() {
    while (this.fetching < FETCHED_AT_ONCE && this.waiting.length) {
      const next = this.waiting.pop();  // what was asked for last is what is looked at now
      if (this.tiles.get(next.key) !== next.tile) continue;
      if (next.tile.used < this.clock - 3) { this.tiles.delete(next.key); continue; }
      this.fetching++;
      this.fetchTile(next).catch((error) => { if (error.message !== '400') setTimeout(() => { this.tiles.delete(next.key); this.draw(); }, 2000); }).finally(() => { this.fetching--; this.draw(); });
    }
  }

  async fetchTile({ key, tile, layer, level, column, row }) {
    const picture = this.picture, kind = this.kindOf(layer), [height, width] = picture.sizes[level];
    const answer = await fetch(`api/pictures/${picture.id}/tiles/${layer}/${level}/${column}/${row}`);
    if (!answer.ok) throw new Error(String(answer.status));
    const bytes = await answer.arrayBuffer();
    if (this.tiles.get(key) !== tile) return;
    const w = Math.min(picture.tile, width - column * picture.tile), h = Math.min(picture.tile, height - row * picture.tile);
    tile.bytes = w * h * (kind.half ? 8 : 4);  // on the card, where three channels take the place of four
    tile.texture = this.texture(kind, w, h, kind.half ? new Uint16Array(bytes) : new Uint8Array(bytes));
  }

  evict() {
    let held = 0;
    for (const tile of this.tiles.values()) held += tile.texture ? tile.bytes : 0;
    if (held <= MOST_BYTES) return;
    const old = [...this.tiles.entries()].filter(([, t]) => t.texture && t.used < this.clock).sort((a, b) => a[1].used - b[1].used);
    for (const [key, tile] of old) {
      if (held <= MOST_BYTES) return;
      held -= tile.bytes;
      this.gl.deleteTexture(tile.texture);
      this.tiles.delete(key);
    }
  }

  // ---- drawing ------------------------------------------------------------------------------------------------------

  draw(now = false) {
    if (this.changed) this.changed();
    if (!this.gl || !this.picture) return;
    if (now) { this.paint(); return; }
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame((time) => { this.asked = false; this.pace(time); this.paint(); });
  }

  // How coarse the next frame is drawn: without a GPU a large canvas takes long, and what moves should move smoothly.
  pace(time) {
    const since = time - (this.before ?? -Infinity);
    this.before = time;
    this.paces = since < REST_MS ? [...this.paces.slice(-3), since] : [];
    if (this.paces.length === 4 && Math.min(...this.paces) > SLOW_MS && this.coarse < COARSEST) { this.coarse++; this.paces = []; }
    clearTimeout(this.rest);
    if (this.coarse > 1) this.rest = setTimeout(() => { this.coarse = 1; this.before = undefined; this.paint(); if (this.changed) this.changed(); }, REST_MS);
  }

  paint() {
    const gl = this.gl, width = Math.max(1, Math.round(this.size.width / this.coarse)), height = Math.max(1, Math.round(this.size.height / this.coarse));
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    this.clock++;
    gl.viewport(0, 0, width, height);
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(0.067, 0.067, 0.067, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform2f(this.uniform.canvas, this.size.width, this.size.height);
    gl.uniform3f(this.uniform.view, this.view.x, this.view.y, this.view.zoom);
    const main = this.state.mode === 'screen' && this.picture.gain ? 'screen' : 'light';
    if (this.state.beside === '') this.side(main);
    else {
      const at = Math.round(this.state.split * width);
      gl.enable(gl.SCISSOR_TEST);
      gl.scissor(0, 0, at, height);
      this.side(main);
      gl.scissor(at, 0, width - at, height);
      this.side(`frame${this.state.beside}`);
      const line = Math.max(1, Math.round(2 * (window.devicePixelRatio || 1) / this.coarse));
      gl.scissor(Math.max(0, at - Math.floor(line / 2)), 0, line, height);
      gl.clearColor(1, 1, 1, 1);
      gl.clear(gl.COLOR_BUFFER_BIT);
    }
    this.fetchNext();
    this.evict();
  }

  // What is shown, 1.0 = this screen's white, is light times this.
  scale() {
    const { mode, exposure, headroom, dim } = this.state, gain = this.picture.gain;
    if (mode === 'screen' && gain) return dim ? 2 ** -Math.min(headroom, Math.max(gain.alternate_headroom, gain.base_headroom)) : 1;
    return 2 ** exposure;
  }

  weight() {
    const gain = this.picture.gain, t = (this.state.headroom - gain.base_headroom) / (gain.alternate_headroom - gain.base_headroom);
    return Math.min(1, Math.max(0, t));
  }

  side(what) {
    const gl = this.gl, picture = this.picture, u = this.uniform, gain = picture.gain;
    const matrix = (place, rows) => gl.uniformMatrix3fv(place, true, rows);
    const overlay = !what.startsWith('frame') && picture.layers.labels ? { provenance: 1, doubt: 2 }[this.state.overlay] || 0 : 0;
    gl.uniform1i(u.kind, what === 'screen' ? 1 : what === 'light' ? 0 : 2);
    gl.uniform1i(u.overlay, overlay);
    gl.uniform1f(u.scale, what.startsWith('frame') && this.state.mode === 'screen' ? 1 : this.scale());
    matrix(u.toScreen, what === 'screen' ? gain.gain_to_srgb : what === 'light' ? picture.radiance_to_srgb : IDENTITY);
    if (what === 'screen') {
      gl.uniform1f(u.weight, this.weight());
      matrix(u.baseToGain, gain.base_to_gain);
      gl.uniform3fv(u.baseOffset, gain.base_offset);
      gl.uniform3fv(u.alternateOffset, gain.alternate_offset);
    }
    const layers = [what === 'screen' ? 'base' : what === 'light' ? 'radiance' : what, what === 'screen' ? 'gain' : null, overlay ? 'labels' : null];
    const last = picture.sizes.length - 1;
    const wanted = Math.min(last, Math.max(0, Math.floor(Math.log2(this.coarse / this.view.zoom) + 1e-9)));
    if (this.whole(layers, wanted)) { this.drawLevel(layers, wanted, true); return; }
    // Coarse ones first: they stand where finer ones are still on their way.
    for (let level = last; level >= wanted; level--) this.drawLevel(layers, level, level === last || level === wanted);
  }

  // Whether all tiles of a level that are seen are there.
  whole(layers, level) {
    let all = true;
    this.eachTile(level, (column, row) => { all &&= layers.every((layer) => !layer || this.tiles.get(this.key(layer, level, column, row))?.texture); });
    return all;
  }

  key(layer, level, column, row) { return `${this.picture.id}/${layer}/${level}/${column}/${row}`; }

  eachTile(level, act) {
    const picture = this.picture, [height, width] = picture.sizes[level], tile = picture.tile;
    const from = this.pictureAt(0, 0), to = this.pictureAt(this.size.width, this.size.height);
    const range = (a, b, scale, size) => [Math.max(0, Math.floor(a / scale / tile)), Math.min(Math.ceil(size / tile) - 1, Math.floor(b / scale / tile))];
    const [left, right] = range(from.x, to.x, picture.width / width, width), [top, bottom] = range(from.y, to.y, picture.height / height, height);
    for (let row = top; row <= bottom; row++) for (let column = left; column <= right; column++) act(column, row);
  }

  drawLevel(layers, level, load) {
    const gl = this.gl, picture = this.picture, [height, width] = picture.sizes[level];
    const sx = picture.width / width, sy = picture.height / height, tile = picture.tile;
    this.eachTile(level, (column, row) => {
      if (!load && layers.some((layer) => layer && !this.tiles.get(this.key(layer, level, column, row))?.texture)) return;
      const textures = layers.map((layer) => layer ? this.tile(layer, level, column, row) : this.blank);
      if (textures.some((t) => !t)) return;
      textures.forEach((texture, unit) => {
        gl.activeTexture(gl.TEXTURE0 + unit);
        gl.bindTexture(gl.TEXTURE_2D, texture);
        if (texture === this.blank) return;
        const smooth = unit < 2 && this.view.zoom < this.coarse ? gl.LINEAR : gl.NEAREST;  // pixels seen one by one are shown as they are
        gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, smooth);
        gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, smooth);
      });
      gl.activeTexture(gl.TEXTURE0);
      const w = Math.min(tile, width - column * tile), h = Math.min(tile, height - row * tile);
      gl.uniform4f(this.uniform.place, column * tile * sx, row * tile * sy, w * sx, h * sy);
      gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    });
  }

  // Whether everything that is looked at is there.
  get complete() { return this.fetching === 0 && this.waiting.length === 0 && !this.asked && this.coarse === 1; }

  // The drawn pixel (0..255 each) at a place of the canvas, in its pixels from the top left.
  read(x, y) {
    this.coarse = 1;
    this.paint();
    const out = new Uint8Array(4);
    this.gl.readPixels(x, this.canvas.height - 1 - y, 1, 1, this.gl.RGBA, this.gl.UNSIGNED_BYTE, out);
    return [...out].slice(0, 3);
  }
}
