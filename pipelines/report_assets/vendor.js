// What the page takes from its libraries. The bundle holds this and what it needs, nothing else.
export {
  AmbientLight,
  BufferAttribute,
  BufferGeometry,
  ClampToEdgeWrapping,
  DataTexture,
  DirectionalLight,
  DoubleSide,
  GridHelper,
  LinearFilter,
  LineBasicMaterial,
  LineSegments,
  Mesh,
  MeshLambertMaterial,
  PerspectiveCamera,
  Plane,
  Raycaster,
  RGBAFormat,
  Scene,
  SRGBColorSpace,
  Vector2,
  Vector3,
  WebGLRenderer,
} from "three";
export { OrbitControls } from "three/addons/controls/OrbitControls.js";
export { axisX, axisY, binX, plot, rectY, ruleX, ruleY } from "@observablehq/plot";
