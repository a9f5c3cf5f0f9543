// What the page takes from its libraries. The bundle holds this and what it needs, nothing else.
export { axisX, axisY, binX, plot, rectY, ruleX, ruleY } from "@observablehq/plot";
