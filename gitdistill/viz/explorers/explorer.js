/* Explorers that need no kernel. `explore(host, data)` puts the view `data.view` in the place of the picture in `host`.
   Everything lies in a shadow root, so that the page's styles and the explorer's do not meet. Numbers come as base64
   of bytes: 255 is the largest value of the map that a byte belongs to. */

const HEAT = [255, 0, 140]; // over a clip in its own colours
const LINES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]; // of Okabe and Ito
const DASHES = ["", "8 4", "8 3 2 3", "2 3", "10 2 2 2 2 2", "2 6", "16 4", "6 2"]; // as in the pictures of `plots`
const look = (k) => ({ stroke: LINES[k % LINES.length], "stroke-dasharray": DASHES[k % DASHES.length], "stroke-width": 2 });

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "g", "rect", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const percent = (value) => (100 * value).toFixed(0) + " %";
const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);

function picture(source) {
  const image = new Image();
  image.src = source;
  return image;
}

/* A canvas of `width` x `height` CSS pixels, as fine as the screen; `draw(pen)` is called now and by `redraw`. */
function canvas(width, height, label, draw) {
  const node = make("canvas", { role: "img", "aria-label": label });
  const fine = Math.max(2, window.devicePixelRatio || 1);
  node.width = width * fine;
  node.height = height * fine;
  node.style.width = width + "px";
  const pen = node.getContext("2d");
  node.redraw = () => {
    pen.setTransform(fine, 0, 0, fine, 0, 0);
    pen.clearRect(0, 0, width, height);
    draw(pen, width, height);
  };
  node.redraw();
  return node;
}

/* A map of rows x columns numbers from 0 to 1 on the whole of a canvas; `colour(value)` gives [r, g, b, a]. */
function heat(pen, width, height, values, rows, columns, smooth, colour) {
  const small = make("canvas");
  small.width = columns;
  small.height = rows;
  const image = new ImageData(columns, rows);
  values.forEach((value, k) => image.data.set(colour(value), 4 * k));
  small.getContext("2d").putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = smooth;
  pen.drawImage(small, 0, 0, width, height);
}

const glow = (value) => [...HEAT, 235 * Math.min(value, 1) ** 0.7];

function choice(label, options, change) {
  const list = make("select", { "aria-label": label, change: () => change(list.selectedIndex) });
  list.append(...options.map((text) => make("option", {}, text)));
  return [make("label", {}, label + " ", list), list];
}

function tick(label, change) {
  const box = make("input", { type: "checkbox", change: () => change(box.checked) });
  return make("label", {}, box, " " + label);
}

function slider(label, texts, change) {
  const shown = make("output", {}, texts[0]);
  const input = { type: "range", min: 0, max: texts.length - 1, value: 0, "aria-label": label };
  const bar = make("input", { ...input, input: () => bar.set(+bar.value) });
  bar.set = (value) => {
    bar.value = value;
    shown.textContent = texts[value];
    bar.setAttribute("aria-valuetext", texts[value]);
    change(value);
  };
  return [make("label", {}, label + " ", bar, " ", shown), bar];
}

/* Words of captions, and where each network looked in every frame; below, every head of every layer. */
function words(root, data) {
  const state = { word: 0, smooth: false, shared: false };
  const [high, wide] = data.size;
  const images = data.frames.map(picture);
  const status = make("p", { class: "status", "aria-live": "polite" });
  const columns = data.networks.map((network) => {
    const chosen = { map: 0, head: null };
    const maps = network.maps.map((map) => ({ ...map, values: bytes(map.values) }));
    const [rows, cells] = network.grid, size = rows * cells, all = size * images.length;
    const current = () => maps[chosen.map];
    const at = (map, word, frame) => map.values.subarray(word * all + frame * size, word * all + (frame + 1) * size);
    const level = (map, word) => (state.shared ? map.tops[word] / Math.max(...map.tops) : 1);
    const here = () => clamp(state.word, network.words.length);
    const perFrame = (map) => images.map((_, frame) => at(map, here(), frame).reduce((sum, value) => sum + value, 0));
    const strongest = (map) => perFrame(map).indexOf(Math.max(...perFrame(map)));

    const buttons = network.words.map((word, k) => {
      const show = () => select(k);
      const sure = network.probabilities ? make("small", {}, network.probabilities[k].toFixed(2)) : "";
      return make("button", { class: "word", pointerenter: show, focus: show, click: show }, word, sure);
    });
    const shares = images.map(() => make("small"));
    const tiles = images.map((image, frame) => {
      const tile = canvas(wide, high, `frame ${frame + 1}`, (pen) => {
        if (image.complete && image.naturalWidth) pen.drawImage(image, 0, 0, wide, high);
        const map = current(), part = level(map, here());
        const values = Array.from(at(map, here(), frame), (value) => (part * value) / 255);
        heat(pen, wide, high, values, rows, cells, state.smooth, glow);
      });
      image.addEventListener("load", tile.redraw);
      const point = (event) => {
        const place = tile.getBoundingClientRect();
        const row = clamp(Math.floor(((event.clientY - place.top) / place.height) * rows), rows);
        const column = clamp(Math.floor(((event.clientX - place.left) / place.width) * cells), cells);
        visit(frame, row * cells + column);
      };
      tile.addEventListener("pointermove", point);
      tile.addEventListener("pointerdown", point); // a finger does not hover, and what it found stays
      tile.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && mark(() => 0));
      return make("figure", {}, tile, make("figcaption", {}, data.names[frame], " ", shares[frame]));
    });

    /* How strongly each word looked at one cell, as the tint of its button. */
    function visit(frame, cell) {
      const map = current();
      const looked = network.words.map((_, k) => (at(map, k, frame)[cell] / 255) * map.tops[k]);
      const most = Math.max(...looked, 1e-9);
      mark((k) => looked[k] / most);
      const order = looked.map((_, k) => k).sort((a, b) => looked[b] - looked[a]).slice(0, 3);
      status.textContent = `This cell: ${order.map((k) => `${network.words[k]} ${percent(looked[k])}`).join(", ")}`;
    }
    const mark = (strength) => {
      buttons.forEach((button, k) => (button.style.background = `rgba(${HEAT}, ${0.6 * strength(k)})`));
    };

    const [label, list] = choice("map", maps.map((map) => map.name), (k) => { chosen.map = k; render(); });
    const heads = maps.map((map, k) => ({ map, k })).filter(({ map }) => map.head);
    const thumbs = heads.map(({ map, k }) => {
      const tile = canvas(44, (44 * high) / wide, map.name, (pen, width, height) => {
        const frame = strongest(map), most = Math.max(...heads.map(({ map }) => map.tops[here()]));
        const part = map.tops[here()] / most; // all heads of a word on one scale
        const values = Array.from(at(map, here(), frame), (value) => Math.sqrt((part * value) / 255));
        if (images[frame].complete) pen.drawImage(images[frame], 0, 0, width, height);
        heat(pen, width, height, values, rows, cells, state.smooth, glow);
      });
      const enlarge = () => { chosen.map = chosen.map === k ? 0 : k; list.selectedIndex = chosen.map; render(); };
      return make("button", { class: "head", title: map.name, click: enlarge }, tile);
    });
    const perLayer = Math.max(1, ...heads.map(({ map }) => map.head[1] + 1));
    const grid = make("div", { class: "heads", style: `grid-template-columns: repeat(${perLayer}, auto)` }, ...thumbs);
    const column = make("section", {}, make("h4", {}, network.name), make("p", {}, ...buttons));
    column.append(make("div", { class: "frames" }, ...tiles));
    if (maps.length > 1) column.append(label);
    if (thumbs.length) column.append(make("div", {}, "heads, on one scale (a row a layer; click one to enlarge it)"), grid);
    column.render = () => {
      buttons.forEach((button, k) => button.setAttribute("aria-pressed", k === here()));
      const map = current();
      const sums = perFrame(map);
      const total = Math.max(sums.reduce((sum, value) => sum + value, 0), 1e-9);
      shares.forEach((share, frame) => (share.textContent = percent(sums[frame] / total)));
      thumbs.forEach((thumb, k) => {
        thumb.setAttribute("aria-pressed", heads[k].k === chosen.map);
        thumb.firstChild.redraw();
      });
      tiles.forEach((tile) => tile.firstChild.redraw());
      mark(() => 0);
    };
    column.count = buttons.length;
    column.word = () => network.words[here()];
    column.likely = () => {
      const texts = (network.candidates?.[here()] ?? []).map(([text, sure]) => `${text} ${percent(sure)}`);
      return texts.length ? ` ${network.name}: ${texts.join(", ")}.` : "";
    };
    return column;
  });

  const longest = Math.max(...columns.map((column) => column.count));
  function select(word) {
    state.word = clamp(word, longest);
    render();
  }
  function render() {
    columns.forEach((column) => column.render());
    const scale = state.shared ? "one scale for all words of a map" : "each word on its own scale";
    const likely = columns.map((column) => column.likely()).join("");
    status.textContent = `Word ${state.word + 1}: \u201c${columns[0].word()}\u201d; ${scale}.${likely}`;
  }
  const smooth = tick("smooth", (on) => { state.smooth = on; render(); });
  const shared = tick("one scale for all words", (on) => { state.shared = on; render(); });
  root.append(make("div", { class: "bar" }, smooth, shared, status), make("div", { class: "columns" }, ...columns));
  images.forEach((image) => image.addEventListener("load", render));
  render();
  return (step) => select(state.word + step);
}

/* Beam searches, step by step: what each candidate says so far, and its score. */
function tree(root, data) {
  const state = { search: 0, step: 0 };
  const status = make("p", { class: "status", "aria-live": "polite" });
  const place = make("div", { class: "scroll" });
  const [list] = choice("search", data.searches.map((search) => search.name), (k) => { state.search = k; reset(); });
  const bar = make("div", { class: "bar" });
  let control = null;

  function reset() {
    const steps = data.searches[state.search].steps;
    const texts = steps.map((_, k) => `${k + 1} of ${steps.length}`);
    const [label, input] = slider("step", texts, (k) => { state.step = k; render(); });
    control = input;
    bar.replaceChildren(list, label);
    input.set(steps.length - 1);
  }
  function say(step, rank) {
    const node = data.searches[state.search].steps[step][rank];
    const score = node.final === null ? `sum of log-probabilities ${node.score.toFixed(2)}` : `final score ${node.final.toFixed(2)}`;
    status.textContent = `${node.state}: \u201c${node.text}\u201d, ${score}`;
  }
  function render() {
    const { steps, best } = data.searches[state.search], shown = steps.slice(0, state.step + 1);
    const ranks = Math.max(...steps.map((nodes) => nodes.length));
    const width = 92 * steps.length + 70, height = 42 * ranks + 16;
    const x = (step) => 92 * step + 104, y = (rank) => 42 * rank + 24;
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height });
    const finished = shown.length === steps.length;
    const won = (step, rank) => finished && best.some(([s, r]) => s === step && r === rank);
    const boxes = [];
    svg.append(make("text", { x: 12, y: y(0) + 4 }, "start"));
    shown.forEach((nodes, step) => nodes.forEach((node, rank) => {
      const from = step ? x(step - 1) + 38 : 44, kind = won(step, rank) ? "won" : node.state;
      const path = `M${from},${y(node.parent)} C${from + 12},${y(node.parent)} ${x(step) - 50},${y(rank)} ${x(step) - 38},${y(rank)}`;
      svg.append(make("path", { class: kind, d: path }));
      const show = () => say(step, rank);
      const box = make("g", { class: `node ${kind}`, tabindex: 0, pointerenter: show, focus: show, click: show });
      box.append(make("rect", { x: x(step) - 38, y: y(rank) - 17, width: 76, height: 34, rx: 5 }));
      if (node.state === "finished") box.append(make("rect", { x: x(step) - 35, y: y(rank) - 14, width: 70, height: 28, rx: 3 }));
      box.append(make("text", { x: x(step), y: y(rank) - 2 }, node.token));
      box.append(make("text", { x: x(step), y: y(rank) + 10, class: "small" }, (node.final ?? node.score).toFixed(2)));
      boxes.push(box);
    }));
    svg.append(...boxes);
    place.replaceChildren(svg);
    say(...(finished && best.length ? best[0] : [state.step, 0]));
  }
  const legend = "solid: kept; dashed: pruned; double: finished, with its score after the length penalty; thick: the caption that won";
  root.append(bar, place, status, make("p", { class: "small" }, legend));
  reset();
  return (step) => control.set(clamp(+control.value + step, data.searches[state.search].steps.length));
}

/* Curves over the steps of a training, with a rule at one step; its captions and maps. */
function training(root, data) {
  const moments = data.moments.map((moment) => moment.step);
  const last = Math.max(...moments, ...data.panels.flatMap((panel) => panel.lines.flatMap((line) => line.steps)));
  const width = 300, height = 190, left = 44, bottom = 26, top = 16;
  const rules = [];
  const panels = data.panels.map((panel) => {
    const values = panel.lines.flatMap((line) => line.values).concat(panel.levels.map((level) => level.value));
    const scale = panel.log ? (value) => Math.log10(Math.max(value, 1e-12)) : (value) => value;
    let low = Math.min(...values.map(scale)), high = Math.max(...values.map(scale));
    if (low === high) [low, high] = [low - 0.5, high + 0.5]; // a flat curve lies in the middle
    const range = high - low;
    const x = (step) => left + ((width - left - 8) * step) / last;
    const y = (value) => height - bottom - ((height - bottom - top) * (scale(value) - low)) / range;
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height });
    for (const value of [low, (low + high) / 2, high]) {
      const number = panel.log ? 10 ** value : value, small = number && Math.abs(number) < 0.001;
      const text = small ? number.toExponential(0) : Number(number.toPrecision(2)).toString();
      svg.append(make("line", { class: "grid", x1: left, x2: width - 8, y1: y(number), y2: y(number) }));
      svg.append(make("text", { x: left - 4, y: y(number) + 4, class: "end" }, text));
    }
    svg.append(make("text", { x: width - 8, y: height - 8, class: "end" }, `step ${last}`));
    for (const line of panel.lines) {
      const points = line.steps.map((step, i) => `${x(step)},${y(line.values[i])}`);
      svg.append(make("path", { ...look(line.place), d: "M" + points.join(" L") }, make("title", {}, line.name)));
    }
    for (const level of panel.levels) {
      svg.append(make("line", { class: "level", x1: left, x2: width - 8, y1: y(level.value), y2: y(level.value) }));
      svg.append(make("text", { x: width - 10, y: y(level.value) - 4, class: "end" }, level.name));
    }
    const rule = make("line", { class: "rule", y1: top, y2: height - bottom });
    rule.move = (step) => { rule.setAttribute("x1", x(step)); rule.setAttribute("x2", x(step)); };
    rules.push(rule);
    svg.append(rule);
    const legend = panel.lines.map((line) => {
      const key = make("svg", { width: 28, height: 8 });
      key.append(make("line", { x1: 0, x2: 28, y1: 4, y2: 4, ...look(line.place) }));
      return make("span", {}, key, " " + line.name);
    });
    return make("figure", { class: "panel" }, make("b", {}, panel.name), svg, make("figcaption", { class: "legend" }, ...legend));
  });
  const captions = make("div", { "aria-live": "polite" }), maps = make("div", { class: "columns" });

  function render(k) {
    const moment = data.moments[k], before = data.moments[k - 1];
    rules.forEach((rule) => rule.move(moment.step));
    captions.replaceChildren(...moment.captions.map((caption, clip) => {
      const old = before ? before.captions[clip].split(" ") : caption.split(" ");
      const parts = caption.split(" ").map((word) => make(old.includes(word) ? "span" : "u", {}, word + " "));
      return make("p", {}, make("b", {}, `clip ${clip + 1} `), ...parts);
    }));
    maps.replaceChildren(...moment.maps.map((map) => matrix(map, data.sides[map.name])));
  }
  const [label, input] = slider("step", moments.map(String), render);
  root.append(make("div", { class: "bar" }, label), make("div", { class: "columns" }, ...panels), captions, maps);
  input.set(moments.length - 1);
  return (step) => input.set(clamp(+input.value + step, moments.length));
}

/* A matrix of numbers from 0 to 1, dark to bright as in a print, with the number in each cell. */
function matrix(map, sides) {
  const rows = map.values.map((row, r) => make("tr", {}, make("th", {}, sides.rows[r]), ...row.map((value) => {
    const grey = 255 - 190 * clamp(value, 2), ink = value > 0.6 ? "white" : "black";
    return make("td", { style: `background: rgb(${grey}, ${grey}, 255); color: ${ink}` }, value ? value.toFixed(2) : "");
  })));
  const head = make("tr", {}, make("th"), ...sides.columns.map((name) => make("th", {}, name)));
  return make("figure", {}, make("table", {}, head, ...rows), make("figcaption", {}, map.name));
}

/* The output of each module for each frame: a table of all, and the strongest channels of one. */
function modules(root, data) {
  const state = { module: 0, frame: 0, smooth: false };
  const images = data.frames.map(picture), [high, wide] = data.size;
  const maps = data.modules.map((module) => ({ ...module, values: bytes(module.values), norms: bytes(module.norms) }));
  const part = (all, index, size) => Array.from(all.subarray(index * size, (index + 1) * size));
  const blue = (value) => [255 - 230 * value, 255 - 150 * value, 255 - 60 * value, 255];
  const signed = (value) => {
    const far = Math.abs(2 * value - 1), [r, g, b] = value > 0.5 ? [94, 60, 153] : [230, 97, 1];
    return [255 - far * (255 - r), 255 - far * (255 - g), 255 - far * (255 - b), 255];
  };
  const rows = maps.map((module, k) => {
    const pick = () => { state.module = k; render(); };
    const cells = module.cells.map((text) => make("td", {}, text));
    const name = make("button", { class: "word", click: pick, focus: pick }, module.name);
    return make("tr", { pointerenter: pick }, make("td", {}, name), ...cells);
  });
  const head = ["module", "output", "mean", "std", "zeros", "ms"].map((text) => make("th", {}, text));
  const table = make("div", { class: "scroll tall" }, make("table", {}, make("tr", {}, ...head), ...rows));
  const place = make("div", { class: "frames" });
  const [label, input] = slider("frame", data.names, (k) => { state.frame = k; render(); });

  function render() {
    const module = maps[state.module], [count, high_, wide_] = module.shape, size = high_ * wide_;
    rows.forEach((row, k) => row.classList.toggle("chosen", k === state.module));
    const tile = (text, draw) => make("figure", {}, canvas(wide, high, text, draw), make("figcaption", {}, text));
    const norm = part(module.norms, state.frame, size).map((value) => value / 255);
    const channels = module.channels[state.frame].map((channel, c) => {
      const values = part(module.values, state.frame * count + c, size).map((value) => value / 255);
      return tile(`channel ${channel}`, (pen) => heat(pen, wide, high, values, high_, wide_, state.smooth, signed));
    });
    const frame = tile(data.names[state.frame], (pen) => pen.drawImage(images[state.frame], 0, 0, wide, high));
    const norms = tile("norm", (pen) => heat(pen, wide, high, norm, high_, wide_, state.smooth, blue));
    place.replaceChildren(frame, norms, ...channels);
  }
  const smooth = tick("smooth", (on) => { state.smooth = on; render(); });
  const note = "norm: white is 0; channels: the strongest by mean square, violet above 0, orange below, white 0";
  root.append(make("div", { class: "bar" }, label, smooth), make("div", { class: "pair" }, table, place));
  root.append(make("p", { class: "small" }, note));
  Promise.all(images.map((image) => image.decode())).then(() => input.set(0));
  return (step) => { state.module = clamp(state.module + step, maps.length); render(); };
}

/* The element before the running script; where a page does not tell which script runs, the newest one not in use. */
function own_host() {
  const found = document.currentScript?.previousElementSibling;
  return found ?? [...document.querySelectorAll(".gitdistill-explorer")].filter((host) => !host.shadowRoot).pop();
}

function explore(host, data) {
  const root = host.attachShadow({ mode: "open" });
  const box = make("div", { class: "explorer", role: "group", "aria-label": data.alt, tabindex: 0 });
  root.append(make("style", {}, data.css), box);
  const move = { words, tree, training, modules }[data.view](box, data);
  box.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the notebook has keys of its own
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
    event.preventDefault();
    move(step);
  });
}
