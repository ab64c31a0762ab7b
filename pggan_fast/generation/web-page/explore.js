// The page: controls to latents, latents through onnxruntime-web to pixels.

const page = JSON.parse(document.getElementById("page").textContent);
const element = (id) => document.getElementById(id);
const view = element("view"), status = element("status");
const numbered = ["seed", "to"];
let session, ort, wanted = 0, playing = null;
let loaded = null; // {name, rows} of a file of latents, which take the place of seeds

// The bytes of a part of this file: gzip, then base64.
async function part(id) {
  const node = element(id), response = await fetchData(node.textContent);
  node.remove(); // a hundred megabytes of text need not stay
  return response;
}

async function fetchData(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load() {
  const address = URL.createObjectURL(new Blob([await part("runtime")], { type: "text/javascript" }));
  ort = await import(address);
  ort.env.wasm.wasmBinary = await part("wasm");
  ort.env.wasm.numThreads = 1; // more need headers that a file has not
  session = await ort.InferenceSession.create(await part("model"), { executionProviders: ["wasm"] });
}

// Whole numbers that an input holds, 0 for anything else.
const whole = (id) => Math.max(0, Math.min(Number.MAX_SAFE_INTEGER, Math.trunc(Number(element(id).value)) || 0));

// What the controls say.
function readState() {
  const truncation = Number(element("truncation").value), chosen = page.labels ? element("label").value : "";
  return {
    seed: whole("seed"),
    to: whole("to"),
    share: Number(element("share").value),
    truncation: truncation >= 0.5 && truncation < Infinity ? truncation : null,
    label: chosen === "" ? null : Number(chosen),
    side: Number(element("grid").value),
    offsets: sliders.map((slider) => Number(slider.value)),
  };
}

// The latent of image `index` of the grid.
function latent(state, index) {
  let z = loaded ? loaded.rows[index % loaded.rows.length].slice()
    : latentOf(state.seed + index, page.latent, state.truncation);
  if (state.share > 0) z = between(z, latentOf(state.to + index, page.latent, state.truncation), state.share);
  state.offsets.forEach((offset, k) => {
    if (offset) page.directions[k].forEach((value, i) => { z[i] += offset * value; });
  });
  return z;
}

// ImageData of one latent.
async function generate(z, label) {
  const feeds = { z: new ort.Tensor("float32", z, [1, page.latent]) };
  if (page.labels) {
    const labels = new Float32Array(page.labels);
    labels[label] = 1;
    feeds.labels = new ort.Tensor("float32", labels, [1, page.labels]);
  }
  const { images } = await session.run(feeds), [, channels, height, width] = images.dims, size = height * width;
  // Rounds half to even and clamps, as `generate` does.
  const pixels = new Uint8ClampedArray(4 * size).fill(255), source = images.data;
  const value = (channel, i) => Math.fround(Math.fround(source[channel * size + i] * 127.5) + 127.5);
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) pixels[4 * i + c] = value(channels < 3 ? 0 : c, i);
    if (channels % 2 === 0) pixels[4 * i + 3] = value(channels - 1, i);
  }
  images.dispose();
  return new ImageData(pixels, width, height);
}

// Draw what the controls say; a later call overtakes one that has not ended.
async function draw() {
  const state = readState(), mine = ++wanted, context = view.getContext("2d", { willReadFrequently: true });
  document.body.dataset.state = "busy";
  describe(state);
  const started = performance.now();
  for (let index = 0; index < state.side ** 2; index++) {
    const seed = state.seed + index;
    const image = await generate(latent(state, index), state.label ?? seed % (page.labels || 1));
    if (mine !== wanted) return;
    const { width, height } = image;
    if (view.width !== width * state.side || view.height !== height * state.side) {
      view.width = width * state.side;
      view.height = height * state.side;
    }
    context.putImageData(image, (index % state.side) * width, Math.floor(index / state.side) * height);
    if (state.side > 1) await new Promise(requestAnimationFrame); // show it, and hear the controls
    if (mine !== wanted) return;
  }
  status.textContent = `${view.width} x ${view.height} px in ${Math.round(performance.now() - started)} ms`;
  document.body.dataset.state = "ready";
}

// The command that makes the same images, where there is one.
function describe(state) {
  const moves = state.offsets.map((offset, k) => offset ? `${k + 1}:${offset}` : "").filter(Boolean);
  const parts = ["pggan-fast generate", page.source];
  if (loaded) parts.push(`--latents ${loaded.name.replace(/[^\w.-]/g, "?")}`); // ? stands for any letter to a shell
  else parts.push(`--seed ${state.seed} --count ${state.side ** 2}`);
  if (moves.length) parts.push(`--move ${moves.join(",")}`);
  if (!loaded && state.truncation !== null) parts.push(`--truncation ${state.truncation}`);
  if (state.label !== null) parts.push(`--label ${state.label}`);
  element("command").textContent = state.share > 0 ? "" : parts.concat("--out FOLDER").join(" ");
}

// One inference at a time: whatever changes meanwhile is drawn after it.
let drawing = false, again = false;
async function update() {
  again = true;
  if (drawing) {
    wanted++;
    return;
  }
  drawing = true;
  try {
    while (again) {
      again = false;
      await draw();
    }
  } catch (error) {
    fail(error);
  }
  drawing = false;
}

function fail(error) {
  document.body.dataset.state = "failed";
  status.textContent = `failed: ${error.message ?? error}`;
}

// Take the latents of the chosen file, or seeds again where none is chosen.
async function readFile() {
  const [file] = element("latents").files;
  try {
    loaded = file ? { name: file.name, rows: latentsOfNpy(await file.arrayBuffer(), page.latent) } : null;
    element("problem").textContent = "";
  } catch (error) {
    loaded = null;
    element("latents").value = "";
    element("problem").textContent = `${file.name}: ${error.message}`;
  }
  await update();
}

function showValue(slider) {
  slider.nextElementSibling.textContent = Number(slider.value).toFixed(slider.id === "share" ? 2 : 1);
}

function step(by) {
  for (const id of numbered) element(id).value = Math.max(0, whole(id) + by);
  update();
}

function addSlider(number) {
  const label = document.createElement("label"), slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: -6, max: 6, step: 0.1, id: `direction${number}` });
  slider.value = 0; // after its bounds, which would cut it
  label.append(`direction ${number + 1}`, slider, document.createElement("output"));
  element("reset").parentElement.before(label);
  return slider;
}

// Go from one seed to the next and on from there.
function play() {
  playing = playing ? null : requestAnimationFrame(playOn);
  element("play").textContent = playing ? "pause" : "play";
}

async function playOn() {
  const share = element("share");
  if (Number(share.value) + 0.02 < 1) {
    share.value = Number(share.value) + 0.02;
  } else {
    share.value = 0;
    element("seed").value = whole("to");
    element("to").value = whole("to") + 1;
  }
  showValue(share);
  await update();
  if (playing) playing = requestAnimationFrame(playOn);
}

function save() {
  view.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `seed${String(whole("seed")).padStart(6, "0")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png");
}

const sliders = page.directions.map((_, number) => addSlider(number));
if (page.labels) page.classes.forEach((name, index) => element("label").append(new Option(name, index)));
else element("label").parentElement.remove();
for (const slider of document.querySelectorAll("input[type=range]")) {
  showValue(slider);
  slider.addEventListener("input", () => showValue(slider));
}
document.querySelector("form").addEventListener("input", update);
element("latents").addEventListener("change", readFile);
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
element("before").addEventListener("click", () => step(-1));
element("after").addEventListener("click", () => step(1));
element("random").addEventListener("click", () => {
  const first = Math.floor(Math.random() * 1e6);
  element("seed").value = first;
  element("to").value = first + 1;
  update();
});
element("play").addEventListener("click", play);
element("save").addEventListener("click", save);
element("reset").addEventListener("click", () => {
  for (const slider of sliders) {
    slider.value = 0;
    showValue(slider);
  }
  update();
});
load().then(update).catch(fail);
