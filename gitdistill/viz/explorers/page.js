
/* The clip maker in a page that needs no kernel: `world.js` draws the clips, and onnxruntime-web runs the networks. */

/* The bytes of an element that holds them in base64, packed by gzip. */
async function unpacked(name) {
  const packed = await (await fetch("data:;base64," + document.getElementById(name).textContent)).blob();
  return new Uint8Array(await new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
}

async function runtime() {
  const script = new Blob([await unpacked("runtime.mjs")], { type: "text/javascript" });
  const ort = await import(URL.createObjectURL(script));
  Object.assign(ort.env.wasm, { wasmBinary: (await unpacked("runtime.wasm")).buffer, numThreads: 1 });
  return ort;
}

async function opened(ort, network, k) {
  const weights = { externalData: [{ path: "weights.bin", data: await unpacked(`weights.bin ${k}`) }] };
  const session = async (name) => ort.InferenceSession.create(await unpacked(`${name} ${k}`), weights);
  return { ...network, encoder: await session("encoder.onnx"), step: await session("step.onnx") };
}

const taken = (row, count) => Array.from(row.keys()).sort((a, b) => row[b] - row[a]).slice(0, count);

/* Greedy decoding of frames [F, 3, S, S]: the tokens, and for each its probability, the likeliest ones, and its attention
   to the image, the mean of all layers and heads. */
async function decoded(ort, network, frames) {
  const { config, encoder, step } = network, S = config.image_size, single = Math.fround;
  const table = config.mean.map((mean, c) => Float32Array.from({ length: 256 }, (_, value) =>
    single(single(value / 255) - single(mean)) / single(config.std[c])));
  const pixels = Float32Array.from(frames, (value, k) => table[over(k, S * S) % 3][value]);
  const shape = [1, frames.length / (3 * S * S), 3, S, S];
  const feed = await encoder.run({ pixels: new ort.Tensor("float32", pixels, shape) });
  const [, heads, cells, width] = Object.values(feed)[0].dims;
  for (const name of step.inputNames.filter((name) => name.startsWith("text_"))) {
    feed[name] = new ort.Tensor("float32", new Float32Array(0), [1, 1, heads, 0, width]);
  }
  const tokens = [config.bos_token_id], words = [];
  while (tokens.length < config.max_length && (tokens.length < 2 || tokens.at(-1) !== config.eos_token_id)) {
    feed.tokens = new ort.Tensor("int64", BigInt64Array.of(BigInt(tokens.at(-1))), [1, 1, 1]);
    const found = await step.run(feed), logits = found.logits.data, maps = new Float64Array(cells);
    const likely = taken(logits, 4), most = logits[likely[0]];
    const total = logits.reduce((sum, value) => sum + Math.exp(value - most), 0);
    const layers = step.outputNames.filter((name) => name.startsWith("attention_"));
    for (const { data, dims } of layers.map((name) => found[name])) {
      for (let k = 0; k < heads * cells; k += 1) {
        maps[k % cells] += data[over(k, cells) * dims.at(-1) + (k % cells)] / (heads * layers.length);
      }
    }
    tokens.push(likely[0]);
    words.push({ candidates: likely.map((token) => [network.words[token], Math.exp(logits[token] - most) / total]), maps });
    for (const name of step.outputNames.filter((name) => name.startsWith("grown_"))) feed[name.replace("grown", "text")] = found[name];
  }
  return { tokens, words };
}

/* What `words` shows of a network; where a frame has one token more than a square number, the first is of its class. */
function column(network, { tokens, words }, frames) {
  const cells = words[0].maps.length / frames, side = Math.floor(Math.sqrt(cells)), more = cells - side * side;
  const maps = words.map((word) => word.maps.filter((_, k) => k % cells >= more)), tops = maps.map((map) => Math.max(...map, 1e-9));
  const values = btoa(String.fromCharCode(...maps.flatMap((map, t) => Array.from(map, (value) => Math.round((255 * value) / tops[t])))));
  return {
    name: network.name, words: tokens.slice(1).map((token) => network.words[token]), grid: [side, side],
    maps: [{ name: "mean of all heads", head: null, tops, values }],
    probabilities: words.map((word) => word.candidates[0][1]), candidates: words.map((word) => word.candidates),
  };
}

/* Frames [F, 3, S, S] as pictures. */
function pictures(frames, S) {
  return Array.from({ length: frames.length / (3 * S * S) }, (_, f) => {
    const sheet = make("canvas", { width: S, height: S }), image = new ImageData(S, S);
    image.data.fill(255);
    for (let c = 0; c < 3; c += 1) for (let k = 0; k < S * S; k += 1) image.data[4 * k + c] = frames[(3 * f + c) * S * S + k];
    sheet.getContext("2d").putImageData(image, 0, 0);
    return sheet.toDataURL();
  });
}

/* Fill `el` with a clip maker of the page's data. Returns what draws a clip and what decodes it, for who wants to test them. */
async function page(el, data) {
  const { world } = data, ort = await runtime(), networks = [];
  for (const [k, network] of data.networks.entries()) networks.push(await opened(ort, network, k));
  const looks = await unpacked("looks"), grounds = await unpacked("grounds");
  const paint = (toys, ground) => draw(world, looks, grounds, toys, ground);
  const state = { ...data.state, choices: data.choices, style: data.css, result: {}, tally: {} }, acts = {};
  const model = { get: (name) => state[name], set: (name, value) => (state[name] = value), on: (name, act) => (acts[name] = act) };
  model.save_changes = async () => {
    const start = performance.now(), frames = paint(state.toys, state.ground), columns = [];
    const names = Array.from({ length: world.frames }, (_, f) => `frame ${f + 1}`);
    for (const network of networks) columns.push(column(network, await decoded(ort, network, frames), world.frames));
    state.result = { error: "", frames: pictures(frames, world.pixels), names, size: [118, 118], networks: columns };
    acts["change:result"]?.();
    el.title = `drawn and captioned in ${(performance.now() - start).toFixed(0)} ms`;
  };
  await model.save_changes();
  render({ model, el });
  return { draw: paint, decode: (k, frames) => decoded(ort, networks[k], frames) };
}
