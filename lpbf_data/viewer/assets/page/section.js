// The section that a cut lays open, hatched: fields inside of the part aren't embedded.

/** Diagonal stripes of two greys. */
function hatchTexture() {
  const side = 32;
  const pixels = new Uint8Array(4 * side * side).fill(255);
  for (let i = 0; i < side * side; i++) pixels.fill(((i % side) + Math.floor(i / side)) % side < 5 ? 105 : 168, 4 * i, 4 * i + 3);
  const texture = new vendor.DataTexture(pixels, side, side, vendor.RGBAFormat);
  texture.colorSpace = vendor.SRGBColorSpace;
  texture.magFilter = texture.minFilter = vendor.LinearFilter;
  texture.wrapS = texture.wrapT = vendor.RepeatWrapping;
  texture.needsUpdate = true;
  return texture;
}

/** A material that draws nothing but counts faces at every pixel. */
function countingMaterial(side, operation, plane) {
  return new vendor.MeshBasicMaterial({
    side, clippingPlanes: [plane], colorWrite: false, depthWrite: false, depthTest: false, stencilWrite: true,
    stencilFunc: vendor.AlwaysStencilFunc, stencilFail: operation, stencilZFail: operation, stencilZPass: operation,
  });
}

/**
 * Where a ray crosses more faces from behind than from the front below the cut, it came in through the section: counted
 * in the stencil buffer, then a plane is drawn where the count isn't zero. Holds for every closed surface, however bent.
 */
class Section {
  constructor(scene, plane) {
    this.counters = [
      [vendor.BackSide, vendor.IncrementWrapStencilOp],
      [vendor.FrontSide, vendor.DecrementWrapStencilOp],
    ].map(([side, operation]) => new vendor.Mesh(undefined, countingMaterial(side, operation, plane)));
    this.hatch = hatchTexture();
    const keep = vendor.ReplaceStencilOp;
    const material = new vendor.MeshBasicMaterial({
      map: this.hatch, side: vendor.DoubleSide, stencilWrite: true, stencilRef: 0, stencilFunc: vendor.NotEqualStencilFunc,
      stencilFail: keep, stencilZFail: keep, stencilZPass: keep,
    });
    this.face = new vendor.Mesh(new vendor.PlaneGeometry(1, 1), material);
    this.face.renderOrder = 1;
    this.meshes = [...this.counters, this.face];
    scene.add(...this.meshes);
    this.setHeight(null);
  }

  /** The part that is cut; the plane reaches further than its deformed shape ever does. */
  setPart(geometry, centre, radius) {
    for (const counter of this.counters) counter.geometry = geometry;
    this.face.scale.setScalar(6 * radius);
    this.face.position.copy(centre);
    this.hatch.repeat.setScalar(120);
  }

  /** Height of the cut; null for none. */
  setHeight(height) {
    for (const mesh of this.meshes) mesh.visible = height !== null;
    if (height !== null) this.face.position.z = height;
  }
}
