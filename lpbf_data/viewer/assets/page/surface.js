// Reads what lpbf_data/viewer/surface_codec.py writes.

const COORDINATE_STEPS = 65535;
const COLUMN_STEPS = 4095;
const FLAT = Math.cos(Math.PI / 6); // faces that meet at a smaller angle are one surface

/** A surface: points [x, y, z, …] in mm, faces [a, b, c, d, …], and columns by name. */
function decodeSurface(buffer) {
  const headLength = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, headLength)));
  let position = 4 + headLength;

  function readPlanes(count, planes) {
    const values = new Int32Array(count);
    const bytes = new Uint8Array(buffer, position, count * planes);
    position += count * planes;
    for (let plane = 0; plane < planes; plane++) {
      for (let i = 0; i < count; i++) values[i] |= bytes[plane * count + i] << (8 * plane);
    }
    for (let i = 0; i < count; i++) values[i] = (values[i] >>> 1) ^ -(values[i] & 1);
    return values;
  }

  function readColumn({ least, largest, planes }, steps) {
    const differences = readPlanes(head.points, planes);
    const values = new Float32Array(head.points);
    let sum = 0;
    for (let i = 0; i < head.points; i++) {
      sum += differences[i];
      values[i] = least + (sum / steps) * (largest - least);
    }
    return values;
  }

  const points = new Float32Array(3 * head.points);
  head.axes.forEach((axis, a) => readColumn(axis, COORDINATE_STEPS).forEach((value, i) => (points[3 * i + a] = value)));
  const corners = readPlanes(4 * head.faces, head.face_planes);
  const faces = new Uint32Array(4 * head.faces);
  let first = 0;
  for (let f = 0; f < head.faces; f++) {
    first += corners[f];
    let corner = first;
    faces[4 * f] = corner;
    for (let k = 1; k < 4; k++) faces[4 * f + k] = corner += corners[k * head.faces + f];
  }
  const columns = {};
  for (const column of head.columns) columns[column.name] = readColumn(column, COLUMN_STEPS);
  return { points, faces, columns };
}

/** Length of the displacement at every point, where all three components are embedded. */
function magnitude({ displacement_x: x, displacement_y: y, displacement_z: z }) {
  return x && y && z ? x.map((value, i) => Math.hypot(value, y[i], z[i])) : null;
}

/** Direction of a face, of length one. */
function normalOf(points, faces, f) {
  const corner = (k, a) => points[3 * faces[f + k] + a];
  const [u, v] = [[2, 0], [3, 1]].map(([to, from]) => [0, 1, 2].map((a) => corner(to, a) - corner(from, a)));
  const across = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
  const length = Math.hypot(...across) || 1;
  return across.map((value) => value / length);
}

/** Edges of the faces as pairs of points, each once: every one, and those at which the surface bends. */
function edgesOf({ points, faces }) {
  const count = points.length / 3;
  const found = new Map();
  for (let f = 0; f < faces.length; f += 4) {
    const normal = normalOf(points, faces, f);
    for (let k = 0; k < 4; k++) {
      const [a, b] = [faces[f + k], faces[f + ((k + 1) % 4)]];
      const key = Math.min(a, b) * count + Math.max(a, b);
      const edge = found.get(key);
      if (!edge) found.set(key, { a, b, normal, isSharp: false });
      else edge.isSharp = edge.normal[0] * normal[0] + edge.normal[1] * normal[1] + edge.normal[2] * normal[2] < FLAT;
    }
  }
  const edges = [...found.values()];
  const pairs = (chosen) => chosen.flatMap(({ a, b }) => [a, b]);
  // An edge with a face on one side only lies where the mesh is refined: the part has no border.
  return { every: pairs(edges), sharp: pairs(edges.filter(({ isSharp }) => isSharp)) };
}

/** Two triangles a face. */
function trianglesOf(faces) {
  const triangles = new Uint32Array((faces.length / 4) * 6);
  for (let f = 0, t = 0; f < faces.length; f += 4, t += 6) {
    triangles.set([faces[f], faces[f + 1], faces[f + 2], faces[f], faces[f + 2], faces[f + 3]], t);
  }
  return triangles;
}
