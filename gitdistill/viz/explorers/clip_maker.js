
/* The clip maker, of which `explorer.js` is the first part: a stage with toys to drag, and the captions beside it. */
function render({ model, el }) {
  const SCALE = 2.4, choices = model.get("choices"), side = SCALE * choices.world;
  const root = el.attachShadow({ mode: "open" });
  const stage = make("div", { class: "stage", style: `width: ${side}px; height: ${side}px` });
  const list = make("div"), captions = make("div", { class: "captions" }), note = make("p", { class: "status", "aria-live": "polite" });
  let busy = false, waiting = false, chosen = 0, smooth = false;

  /* One message at a time: while the kernel draws and captions, only the newest state waits. */
  function send(toys) {
    model.set("toys", toys.map((toy) => ({ ...toy })));
    if (busy) { waiting = true; return; }
    busy = true;
    model.save_changes();
  }
  const change = (k, values) => send(model.get("toys").map((toy, j) => (j === k ? { ...toy, ...values } : toy)));

  function pick(label, options, value, act) {
    const [box, select] = choice(label, options, (k) => act(options[k]));
    select.selectedIndex = Math.max(0, options.indexOf(value));
    return box;
  }
  function handle(toy, k) {
    const node = make("button", { class: "toy", title: `drag the ${toy.name}`, "aria-label": `${toy.name}, drag or use the arrow keys` });
    node.style.left = SCALE * toy.x - 22 + "px";
    node.style.top = SCALE * toy.y - 22 + "px";
    const move = (x, y) => {
      const at = [x, y].map((value) => Math.round(Math.min(Math.max(value, 4), choices.world - 4)));
      node.style.left = SCALE * at[0] - 22 + "px";
      node.style.top = SCALE * at[1] - 22 + "px";
      change(k, { x: at[0], y: at[1] });
    };
    node.addEventListener("pointerdown", (event) => { chosen = k; node.setPointerCapture(event.pointerId); });
    node.addEventListener("pointermove", (event) => {
      if (!node.hasPointerCapture(event.pointerId)) return;
      const place = stage.getBoundingClientRect();
      move((event.clientX - place.left) / SCALE, (event.clientY - place.top) / SCALE);
    });
    node.addEventListener("pointerup", () => controls());
    node.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4] }[event.key];
      event.stopPropagation();
      if (!step) return;
      event.preventDefault();
      const now = model.get("toys")[k];
      move(now.x + step[0], now.y + step[1]);
    });
    return node;
  }
  function controls() {
    const toys = model.get("toys"), objects = Object.keys(choices.objects);
    stage.replaceChildren(stage.picture, ...toys.map(handle));
    const rows = toys.map((toy, k) => {
      const colours = choices.objects[toy.name];
      const parts = [
        pick("object", objects, toy.name, (name) => change(k, { name, colour: "" })),
        pick("size", choices.sizes, toy.size, (size) => change(k, { size })),
        pick("motion", choices.motions, toy.motion, (motion) => change(k, { motion })),
      ];
      if (colours.length) parts.splice(1, 0, pick("colour", ["", ...colours], toy.colour, (colour) => change(k, { colour })));
      const front = make("button", { class: "act", click: () => { send([...toys.filter((_, j) => j !== k), toy]); controls(); } }, "to the front");
      const away = make("button", { class: "act", click: () => { if (toys.length > 1) { send(toys.filter((_, j) => j !== k)); controls(); } } }, "away");
      return make("div", { class: "bar" }, ...parts, front, away);
    });
    const add = make("button", { class: "act", click: () => {
      if (toys.length < 3) { send([...toys, { ...toys[0], name: "ball" in choices.objects ? "ball" : objects[0], colour: "", motion: "still", x: 64, y: 64 }]); controls(); }
    } }, "one more");
    const ground = pick("ground", choices.grounds, model.get("ground"), (value) => { model.set("ground", value); send(toys); });
    list.replaceChildren(make("div", { class: "bar" }, ground, add), ...rows);
  }
  const heats = Array.from({ length: 16 }, (_, k) => (k / 10).toFixed(1));
  const [temperature] = slider("temperature", heats, (k) => {
    if (!stage.picture) return;
    model.set("temperature", k / 10);
    send(model.get("toys"));
  });
  const keep = make("button", { class: "act", click: () => { model.set("kept", model.get("kept") + 1); model.save_changes(); } }, "keep this clip");

  function show() {
    const result = model.get("result");
    busy = false;
    if (waiting) { waiting = false; send(model.get("toys")); }
    note.textContent = result.error;
    if (!result.frames) return;
    stage.picture = make("img", { src: result.frames[0], alt: "the first frame", draggable: "false" });
    stage.querySelector("img")?.replaceWith(stage.picture);
    captions.replaceChildren();
    words(captions, result);
  }
  function count() {
    const tally = model.get("tally");
    if (!tally.clips) return;
    const parts = Object.entries(tally.right).map(([name, right]) => `${name} ${right} (this one: ${tally.last[name] ? "right" : "wrong"})`);
    note.textContent = `Of ${tally.clips} clips right: ${parts.join(", ")}`;
  }
  model.on("change:result", show);
  model.on("change:tally", count);
  const style = `.stage { position: relative; touch-action: none; flex: none } .stage img { width: 100%; image-rendering: auto; user-select: none }
    .toy { position: absolute; width: 44px; height: 44px; border: 1.5px dashed #fff; border-radius: 50%; cursor: grab; mix-blend-mode: difference }
    .act { border-color: #777 } .captions { flex: 1 1 420px } .left { flex: 0 0 ${side}px } .left .bar { gap: 4px 8px; margin-top: 6px }`;
  root.append(make("style", {}, model.get("style") + style));
  const bars = [make("div", { class: "bar" }, temperature), make("div", { class: "bar" }, keep, note)]; // a page has only greedy decoding
  const left = make("div", { class: "left" }, stage, ...(choices.greedy ? [] : bars), list);
  root.append(make("div", { class: "explorer pair", role: "group", "aria-label": "clip maker" }, left, captions));
  root.addEventListener("keydown", (event) => event.stopPropagation());
  show();
  controls();
}
export default { render };
