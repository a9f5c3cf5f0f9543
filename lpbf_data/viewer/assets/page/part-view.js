// A part in 3D: one canvas, one to three panes of it (truth, prediction, error) seen by one camera.

const VIEWS = {
  corner: [1, -1.6, 0.9],
  front: [0, -1, 0],
  side: [1, 0, 0],
  top: [0, -0.001, 1], // a hair off the axis: "up" needs a direction
};
const TURN = Math.PI / 24;

/** Colours of a palette as a texture: looked up pixel by pixel, so values between points get their true colour. */
function paletteTexture(palette) {
  const pixels = new Uint8Array(4 * 256).fill(255);
  for (let i = 0; i < 256; i++) pixels.set(palette.subarray(3 * i, 3 * i + 3), 4 * i);
  const texture = new vendor.DataTexture(pixels, 256, 1, vendor.RGBAFormat);
  texture.colorSpace = vendor.SRGBColorSpace;
  texture.magFilter = texture.minFilter = vendor.LinearFilter;
  texture.wrapS = texture.wrapT = vendor.ClampToEdgeWrapping;
  texture.needsUpdate = true;
  return texture;
}

class PartView {
  constructor(canvas, palettes, onTurn = () => {}) {
    this.canvas = canvas;
    this.onTurn = onTurn;
    this.renderer = new vendor.WebGLRenderer({ canvas, antialias: true, alpha: true, stencil: true });
    this.renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
    this.cutPlane = new vendor.Plane(new vendor.Vector3(0, 0, -1), 0);
    this.renderer.localClippingEnabled = true;
    this.textures = Object.fromEntries(Object.entries(palettes).map(([name, palette]) => [name, paletteTexture(palette)]));
    this.camera = new vendor.PerspectiveCamera(30, 1, 0.1, 5000);
    this.camera.up.set(0, 0, 1);
    this.controls = new vendor.OrbitControls(this.camera, canvas);
    this.controls.addEventListener("change", () => this.draw());
    this.raycaster = new vendor.Raycaster();
    this.makeScene();
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  makeScene() {
    this.scene = new vendor.Scene();
    // Without light: a colour on the surface is the one that the colour bar has for its value. Edges show the shape.
    this.material = new vendor.MeshBasicMaterial({
      map: this.textures.plain, side: vendor.DoubleSide, polygonOffset: true, polygonOffsetFactor: 1, polygonOffsetUnits: 1, clippingPlanes: [this.cutPlane],
    });
    this.mesh = new vendor.Mesh(new vendor.BufferGeometry(), this.material);
    this.lines = new vendor.LineSegments(new vendor.BufferGeometry(), new vendor.LineBasicMaterial({ color: 0x000000, transparent: true, opacity: 0.4, clippingPlanes: [this.cutPlane] }));
    this.hasMesh = false;
    this.scene.add(this.mesh, this.lines);
    this.section = new Section(this.scene, this.cutPlane);
  }

  /** Show another part; the camera goes to its first place. */
  setSurface(surface) {
    this.surface = surface;
    this.positions = new vendor.BufferAttribute(surface.points.slice(), 3);
    this.mesh.geometry.dispose();
    this.mesh.geometry = new vendor.BufferGeometry();
    this.mesh.geometry.setAttribute("position", this.positions);
    this.mesh.geometry.setIndex(new vendor.BufferAttribute(trianglesOf(surface.faces), 1));
    this.lines.geometry.dispose();
    this.lines.geometry = new vendor.BufferGeometry();
    this.lines.geometry.setAttribute("position", this.positions);
    this.edges = edgesOf(surface);
    this.panes = [];
    this.measure();
    this.section.setPart(this.mesh.geometry, this.centre, this.radius);
    this.addPlate();
    this.setMesh(this.hasMesh);
    this.setCut(this.high[2]);
    this.look("corner");
  }

  measure() {
    this.low = [Infinity, Infinity, Infinity];
    this.high = [-Infinity, -Infinity, -Infinity];
    this.surface.points.forEach((value, i) => {
      this.low[i % 3] = Math.min(this.low[i % 3], value);
      this.high[i % 3] = Math.max(this.high[i % 3], value);
    });
    this.centre = new vendor.Vector3(...this.low.map((low, a) => (low + this.high[a]) / 2));
    this.radius = Math.hypot(...this.low.map((low, a) => this.high[a] - low)) / 2 || 1;
  }

  /** The build plate under the part, a square of ten millimetres a cell. */
  addPlate() {
    this.scene.remove(this.plate);
    const half = 10 * Math.ceil(Math.max(...[0, 1].map((a) => Math.max(Math.abs(this.low[a]), Math.abs(this.high[a])))) / 10 + 0.5);
    this.plate = new vendor.GridHelper(2 * half, half / 5, 0x808080, 0x808080);
    this.plate.rotation.x = Math.PI / 2;
    this.plate.position.z = this.low[2] - 0.002 * this.radius;
    this.plate.material.transparent = true;
    this.plate.material.opacity = 0.35;
    this.scene.add(this.plate);
  }

  /** What the panes show: [{ values, range: [low, high], palette }]. */
  setPanes(panes) {
    const isOtherSize = panes.length !== this.panes.length;
    this.panes = panes.map(({ values, range: [low, high], palette }) => {
      const span = high - low || 1;
      const coordinates = new Float32Array(2 * values.length).fill(0.5);
      values.forEach((value, i) => (coordinates[2 * i] = (0.5 + 255 * ((value - low) / span)) / 256));
      return { values, texture: this.textures[palette], coordinates: new vendor.BufferAttribute(coordinates, 2) };
    });
    this.resize();
    if (isOtherSize) this.lookAlong(this.camera.position.clone().sub(this.controls.target));
  }

  /** Add the displacement, so many times. */
  setFactor(factor) {
    const { displacement_x: x, displacement_y: y, displacement_z: z } = this.surface.columns;
    const moved = this.positions.array;
    moved.set(this.surface.points);
    [x, y, z].forEach((values, a) => values?.forEach((value, i) => (moved[3 * i + a] += factor * value)));
    this.positions.needsUpdate = true;
    this.mesh.geometry.boundingSphere = this.lines.geometry.boundingSphere = null;
    this.draw();
  }

  /** Hide everything above a height. */
  setCut(height) {
    const isWhole = height > this.high[2] - 1e-4 * this.radius; // a slider doesn't give its end to the last digit
    this.cutPlane.constant = isWhole ? 1e6 : height;
    this.section.setHeight(isWhole ? null : height);
    this.draw();
  }

  /** Draw every edge of the mesh, or only where the surface bends. */
  setMesh(all) {
    this.hasMesh = all;
    this.lines.geometry.setIndex(all ? this.edges.every : this.edges.sharp);
    this.draw();
  }

  /** Go to one of the named views. */
  look(view) {
    this.lookAlong(new vendor.Vector3(...VIEWS[view]));
  }

  /** See the whole part, from where a direction points to. */
  lookAlong(direction) {
    const pane = this.canvas.clientWidth / Math.max(this.panes.length, 1) / Math.max(this.canvas.clientHeight, 1) || 1;
    const angle = (this.camera.fov * Math.PI) / 360;
    const distance = (1.05 * this.radius) / Math.sin(Math.min(angle, Math.atan(Math.tan(angle) * pane)));
    this.camera.near = distance / 100;
    this.camera.far = distance * 20;
    this.controls.target.copy(this.centre);
    this.camera.position.copy(this.centre).addScaledVector(direction.normalize(), distance);
    this.camera.updateProjectionMatrix();
    this.controls.update();
    this.draw();
  }

  /** Turn around the part: right and up, in radians. */
  turn(right, up) {
    const offset = this.camera.position.clone().sub(this.controls.target);
    const distance = offset.length();
    const azimuth = Math.atan2(offset.y, offset.x) + right;
    const height = Math.min(Math.max(Math.asin(offset.z / distance) + up, -1.57), 1.57);
    offset.set(Math.cos(height) * Math.cos(azimuth), Math.cos(height) * Math.sin(azimuth), Math.sin(height)).multiplyScalar(distance);
    this.camera.position.copy(this.controls.target).add(offset);
    this.controls.update();
  }

  zoom(factor) {
    const offset = this.camera.position.clone().sub(this.controls.target).multiplyScalar(factor);
    this.camera.position.copy(this.controls.target).add(offset);
    this.controls.update();
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / Math.max(this.panes?.length ?? 1, 1) / height;
    this.camera.updateProjectionMatrix();
    this.draw();
  }

  draw() {
    if (!this.panes?.length || !this.canvas.clientWidth) return;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const each = width / this.panes.length;
    this.renderer.setScissorTest(this.panes.length > 1);
    this.panes.forEach((pane, number) => {
      this.renderer.setViewport(number * each, 0, each, height);
      this.renderer.setScissor(number * each, 0, each, height);
      this.mesh.geometry.setAttribute("uv", pane.coordinates);
      this.material.map = pane.texture;
      this.renderer.render(this.scene, this.camera);
    });
    this.onTurn();
  }

  /** What lies under a place of the canvas: position before deformation, and value (null inside of the part); null for nothing. */
  pick(x, y) {
    if (!this.panes?.length) return null;
    const each = this.canvas.clientWidth / this.panes.length;
    const pane = this.panes[Math.min(Math.floor(x / each), this.panes.length - 1)];
    const pointer = new vendor.Vector2(((x % each) / each) * 2 - 1, 1 - (y / this.canvas.clientHeight) * 2);
    this.raycaster.setFromCamera(pointer, this.camera);
    const hit = this.raycaster.intersectObject(this.mesh).find(({ point }) => point.z <= this.cutPlane.constant);
    if (!hit) return null;
    const number = this.panes.indexOf(pane);
    if (hit.face.normal.dot(this.raycaster.ray.direction) > 0) {
      // A face seen from behind: the ray came in through the section.
      const at = this.raycaster.ray.intersectPlane(this.cutPlane, new vendor.Vector3());
      return at && { position: at.toArray(), value: null, pane: number };
    }
    const corners = [hit.face.a, hit.face.b, hit.face.c];
    const at = corners.map((corner) => new vendor.Vector3().fromBufferAttribute(this.positions, corner));
    const weights = barycentric(hit.point, at);
    const mix = (value) => corners.reduce((sum, corner, i) => sum + weights[i] * value(corner), 0);
    return {
      position: [0, 1, 2].map((a) => mix((corner) => this.surface.points[3 * corner + a])),
      value: mix((corner) => pane.values[corner]),
      pane: number,
    };
  }
}

/** Shares of the corners of a triangle in a point of it. */
function barycentric(point, [a, b, c]) {
  const [u, v, w] = [b.clone().sub(a), c.clone().sub(a), point.clone().sub(a)];
  const [uu, uv, vv, wu, wv] = [u.dot(u), u.dot(v), v.dot(v), w.dot(u), w.dot(v)];
  const area = uu * vv - uv * uv || 1;
  const [second, third] = [(vv * wu - uv * wv) / area, (uu * wv - uv * wu) / area];
  return [1 - second - third, second, third];
}
