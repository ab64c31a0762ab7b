// The latents of `pggan-fast generate --seed`: torch's generator on the CPU (mt19937) and its normal distribution.

const DOUBLE = 2 ** -53, SINGLE = 2 ** -24;

class TorchRandom {
  // As torch.Generator().manual_seed(seed) with a whole number; mt19937 takes its low 32 bits.
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, before ^ (before >>> 30)) + i;
    }
    this.next = 624;
    this.kept = null; // the second of a pair of normal numbers, as torch keeps it
  }

  bits() {
    if (this.next === 624) {
      const s = this.state;
      for (let i = 0; i < 624; i++) {
        const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
        s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.next = 0;
    }
    let y = this.state[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  // In fp32: 24 bits.
  uniform() {
    return (this.bits() & 0xffffff) * SINGLE;
  }

  // In fp64: 53 of 64 bits, the high half first.
  uniformDouble() {
    const high = this.bits(), low = this.bits();
    return ((high & 0x1fffff) * 2 ** 32 + low) * DOUBLE;
  }

  // torch.randn(1, size): Float32Array [size].
  normal(size) {
    const values = new Float32Array(size);
    if (size < 16) return values.map(() => this.oneNormal());
    for (let i = 0; i < size; i++) values[i] = this.uniform();
    for (let i = 0; i + 16 <= size; i += 16) boxMuller(values.subarray(i, i + 16));
    if (size % 16) { // the last 16 are drawn again
      const last = values.subarray(size - 16);
      for (let i = 0; i < 16; i++) last[i] = this.uniform();
      boxMuller(last);
    }
    return values;
  }

  oneNormal() {
    if (this.kept !== null) {
      const kept = this.kept;
      this.kept = null;
      return kept;
    }
    const angle = 2 * Math.PI * this.uniformDouble();
    const radius = Math.sqrt(-2 * Math.log1p(-this.uniformDouble()));
    this.kept = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }
}

// Replace 16 uniform numbers by 16 normal ones.
function boxMuller(values) {
  for (let i = 0; i < 8; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - values[i])), angle = 2 * Math.PI * values[i + 8];
    values[i] = radius * Math.cos(angle);
    values[i + 8] = radius * Math.sin(angle);
  }
}

// The latent of a seed: normal, or with `truncation` each component beyond it sampled again.
function latentOf(seed, size, truncation) {
  const random = new TorchRandom(seed), z = random.normal(size);
  if (truncation === null) return z;
  const bound = Math.fround(truncation), beyond = (x) => x < -bound || x > bound;
  while (z.some(beyond)) {
    const again = random.normal(size);
    for (let i = 0; i < size; i++) if (beyond(z[i])) z[i] = again[i];
  }
  return z;
}

// Between two latents along their great circle, the length going evenly from one's to the other's.
function between(a, b, share) {
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const lengthA = Math.sqrt(dot(a, a)) || 1, lengthB = Math.sqrt(dot(b, b)) || 1; // a file may hold zeros
  const angle = Math.acos(Math.max(-1, Math.min(1, dot(a, b) / (lengthA * lengthB))));
  const sine = Math.sin(angle), length = lengthA + share * (lengthB - lengthA);
  if (sine <= 1e-6) return a.map((value) => (value / lengthA) * length);
  const weightA = Math.sin((1 - share) * angle) / sine / lengthA, weightB = Math.sin(share * angle) / sine / lengthB;
  return a.map((value, i) => (weightA * value + weightB * b[i]) * length);
}

// The latents in a .npy file, as `project` writes them: an array of Float32Array [size].
function latentsOfNpy(buffer, size) {
  const bytes = new Uint8Array(buffer), view = new DataView(buffer);
  if (bytes.length < 12 || String.fromCharCode(...bytes.subarray(1, 6)) !== "NUMPY") throw new Error("is no .npy file");
  const wide = bytes[6] > 1, start = wide ? 12 : 10;
  const length = wide ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder().decode(bytes.subarray(start, start + length)), data = start + length;
  const sides = /'shape': \(([\d, ]*)\)/.exec(header), shape = sides?.[1].match(/\d+/g)?.map(Number);
  if (!shape || !/'descr': '<f4'/.test(header) || !/'fortran_order': False/.test(header)) {
    throw new Error("must hold fp32 numbers in C order");
  }
  const count = shape.length === 1 ? 1 : shape[0];
  if (shape.length > 2 || shape[shape.length - 1] !== size || !count || bytes.length !== data + 4 * count * size) {
    throw new Error(`must be of shape ${size} or Nx${size}, is ${shape.join("x")}`);
  }
  return Array.from({ length: count }, (_, row) =>
    Float32Array.from({ length: size }, (_, i) => view.getFloat32(data + 4 * (row * size + i), true)));
}
