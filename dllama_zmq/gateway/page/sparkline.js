/** The last numbers of a row as a line: how fast, lately. A picture; the number itself stands beside it. */

const NAMESPACE = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [120, 28];

export class Sparkline {
  #values = [];

  /** svg: the element that is drawn into. most: so many numbers are shown. */
  constructor(svg, most) {
    this.most = most;
    this.line = document.createElementNS(NAMESPACE, "polyline");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.append(this.line);
  }

  add(value) {
    this.#values = [...this.#values, value].slice(-this.most);
    const top = Math.max(1, ...this.#values);
    const from = this.most - this.#values.length;
    const points = this.#values.map((each, index) => {
      const x = ((from + index) / (this.most - 1)) * WIDTH;
      return `${x.toFixed(1)},${(HEIGHT - 1 - (each / top) * (HEIGHT - 2)).toFixed(1)}`;
    });
    this.line.setAttribute("points", points.join(" "));
  }
}
