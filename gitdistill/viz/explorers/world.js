
/* The scenes of `gitdistill.world`, drawn in the same integers: `world` holds its tables, `looks` the toys as RGBA bytes,
   `grounds` each ground as [3, S, S]. Numbers stay below 2 ** 53, so that a quotient rounded down is exact. */
const over = (value, by) => Math.floor(value / by);

/* A picture is { h, w, at }: `at` holds h x w x 4 numbers, premultiplied as in `gitdistill.world.sprites`. */
function spriteOf(world, looks, name, colour) {
  const [start, h, w] = world.looks[`${name} ${colour}`], at = new Float64Array(h * w * 4);
  for (let k = 0; k < at.length; k += 4) {
    const opacity = looks[start + k + 3];
    for (let c = 0; c < 3; c += 1) at[k + c] = looks[start + k + c] * opacity;
    at[k + 3] = 255 * opacity;
  }
  return { h, w, at };
}

/* Catmull-Rom weights [fresh][old], each row adding up to 65,536. */
function weights(old, fresh) {
  const s = 2 * Math.max(old, fresh);
  return Array.from({ length: fresh }, (_, j) => {
    const row = Array.from({ length: old }, (_, i) => {
      const d = Math.abs((2 * j + 1) * old - (2 * i + 1) * fresh);
      if (d < s) return 3 * d ** 3 - 5 * d * d * s + 2 * s ** 3;
      return d < 2 * s ? -(d ** 3) + 5 * d * d * s - 8 * d * s * s + 4 * s ** 3 : 0;
    });
    const total = row.reduce((sum, value) => sum + value, 0), shares = row.map((value) => over(value * 65536, total));
    shares[shares.indexOf(Math.max(...shares))] += 65536 - shares.reduce((sum, value) => sum + value, 0);
    return shares;
  });
}

function resized({ h, w, at }, size) {
  const longer = Math.max(h, w), fit = (side) => Math.max(1, over(2 * side * size + longer, 2 * longer));
  const [high, wide] = [fit(h), fit(w)], middle = new Float64Array(high * w * 4), found = new Float64Array(high * wide * 4);
  weights(h, high).forEach((row, y) => {
    for (let k = 0; k < 4 * w; k += 1) middle[y * 4 * w + k] = over(row.reduce((sum, part, i) => sum + part * at[i * 4 * w + k], 0), 65536);
  });
  weights(w, wide).forEach((row, x) => {
    for (let y = 0; y < high; y += 1) for (let c = 3; c >= 0; c -= 1) {
      const value = over(row.reduce((sum, part, i) => sum + part * middle[(y * w + i) * 4 + c], 0), 65536), k = (y * wide + x) * 4;
      found[k + c] = Math.min(Math.max(value, 0), c === 3 ? 65025 : found[k + 3]);
    }
  });
  return { h: high, w: wide, at: found };
}

function sine(world, angle) {
  const turn = ((angle % 360) + 360) % 360;
  return turn >= 180 ? -sine(world, turn - 180) : world.sines[Math.min(turn, 180 - turn) / 5];
}

function turned(world, { h, w, at }, angle) {
  const side = Math.floor(Math.sqrt(h * h + w * w)) + 2, found = new Float64Array(side * side * 4);
  const sin = sine(world, angle), cos = sine(world, angle + 90);
  const pixel = (y, x, c) => (y < 0 || x < 0 || y >= h || x >= w ? 0 : at[(y * w + x) * 4 + c]);
  for (let j = 0; j < side; j += 1) for (let i = 0; i < side; i += 1) {
    const u = 2 * i - side + 1, v = 2 * j - side + 1;
    const x = over(u * cos + v * sin, 2) + (w - 1) * 32768, y = over(v * cos - u * sin, 2) + (h - 1) * 32768;
    const left = over(x, 65536), top = over(y, 65536), right = x - 65536 * left, low = y - 65536 * top;
    const across = (row, c) => over(pixel(row, left, c) * (65536 - right) + pixel(row, left + 1, c) * right, 65536);
    for (let c = 0; c < 4; c += 1) found[(j * side + i) * 4 + c] = over(across(top, c) * (65536 - low) + across(top + 1, c) * low, 65536);
  }
  return { h: side, w: side, at: found };
}

/* A soft shadow of the opacities [h][w], a little below: twice blurred on a border of two pixels, and moved down. */
function shadow(world, opacity, h, w, down) {
  const [high, wide] = [h + 4, w + 4];
  let soft = new Float64Array(high * wide);
  opacity.forEach((value, k) => (soft[(over(k, w) + 2) * wide + (k % w) + 2] = value));
  const roll = (y, x) => soft[((y + high) % high) * wide + ((x + wide) % wide)];
  const blur = (dy, dx) => (soft = soft.map((value, k) => {
    const y = over(k, wide), x = k % wide;
    return over(roll(y - dy, x - dx) + 2 * value + roll(y + dy, x + dx), 4);
  }));
  [0, 1].forEach(() => { blur(1, 0); blur(0, 1); });
  return opacity.map((_, k) => over(roll((((over(k, w) + 2 - down) % high) + high) % high, (k % w) + 2) * world.shadow, 255));
}

function sprite(world, looks, toy, size, angle, low) {
  let shape = resized(spriteOf(world, looks, toy.name, toy.colour), size), x = 0, y = 0;
  const height = shape.h, m = world.margin;
  if (angle) {
    shape = turned(world, shape, angle);
    if (low) [x, y] = [over(height * sine(world, angle), 131072), over(height * (65536 - sine(world, angle + 90)), 131072)];
  }
  const h = shape.h + 2 * m, w = shape.w + 2 * m, colour = new Float64Array(h * w * 3), opacity = new Float64Array(h * w);
  for (let k = 0; k < shape.h * shape.w; k += 1) {
    const place = (over(k, shape.w) + m) * w + (k % shape.w) + m;
    for (let c = 0; c < 3; c += 1) colour[place * 3 + c] = shape.at[4 * k + c];
    opacity[place] = over(shape.at[4 * k + 3] + 127, 255);
  }
  const below = shadow(world, opacity, h, w, Math.max(1, over(size, 20)));
  const covered = opacity.map((value, k) => value + over(below[k] * (255 - value) + 127, 255));
  return { h, w, colour, opacity: covered, x: x - over(w, 2), y: y - over(h, 2) };
}

/* Where a toy is in a frame and how it looks there, as `gitdistill.world.drawing.placed` has it. */
function placed(world, toy, way, turns, frame) {
  const last = Math.max(1, world.frames - 1), mix = (a, b) => a * (last - frame) + b * frame;
  const [w, h] = world.looks[`${toy.name} ${toy.colour}`].slice(1).reverse();
  const half = [w, h].map((side) => over(Math.ceil((world.sizes[toy.size] * side) / Math.max(w, h)) + 1, 2));
  const ends = [toy.x, toy.y].map((at, axis) => {
    const step = (world.steps[toy.motion]?.[axis] ?? 0) * way, low = world.border + half[axis];
    return step < 0 ? Math.max(at + step, Math.min(low, at)) : Math.min(at + step, Math.max(world.side - low, at));
  });
  const growth = { grow: world.growth, shrink: [...world.growth].reverse() }[toy.motion];
  const size = growth ? over(mix(...growth), last) : world.sizes[toy.size];
  const wobble = (frame + turns) % 2 ? world.sway : -world.sway;
  const spin = over(over(world.spin * frame, last), 5) * 5 * (turns ? 1 : -1);
  const angle = { spin, wobble }[toy.motion] ?? 0;
  const up = toy.motion === "jump" ? over(4 * world.jump * frame * (last - frame), last * last) * last : 0;
  const [x, y] = [mix(toy.x, ends[0]), mix(toy.y, ends[1]) - up].map((at) => over(at * world.pixels, last * world.side));
  return { x, y, size: Math.max(1, over(size * world.pixels, world.side)), angle, low: toy.motion === "wobble" };
}

const drawn = new Map(); // sprites, which are slow to draw and look the same wherever they are

/* The frames of toys on a ground, one after the other as [3, S, S]. */
function draw(world, looks, grounds, toys, ground) {
  const S = world.pixels, area = S * S, { ways, turns } = world.scenes[toys.length - 1];
  const start = world.grounds.indexOf(ground) * 3 * area, frames = new Uint8Array(world.frames * 3 * area);
  for (let f = 0; f < world.frames; f += 1) {
    const frame = frames.subarray(f * 3 * area, (f + 1) * 3 * area);
    frame.set(grounds.subarray(start, start + 3 * area));
    toys.forEach((toy, k) => {
      const { x, y, size, angle, low } = placed(world, toy, ways[k], turns[k], f);
      const key = [toy.name, toy.colour, size, angle, low].join();
      if (!drawn.has(key)) drawn.set(key, sprite(world, looks, toy, size, angle, low));
      const { h, w, colour, opacity, x: dx, y: dy } = drawn.get(key);
      for (let k = 0; k < h * w; k += 1) {
        const row = y + dy + over(k, w), column = x + dx + (k % w);
        if (row < 0 || column < 0 || row >= S || column >= S) continue;
        for (let c = 0; c < 3; c += 1) {
          const at = c * area + row * S + column;
          const value = frame[at] * (255 - opacity[k]) + colour[3 * k + c] + 128;
          frame[at] = (value + (value >> 8)) >> 8;
        }
      }
    });
  }
  return frames;
}
