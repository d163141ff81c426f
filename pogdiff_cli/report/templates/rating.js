"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const by = (id) => document.getElementById(id);
  const items = new Map(data.items.map((item) => [item.id, item]));
  const values = data.choices.map((choice) => choice.value);
  const LIMIT = 8 * 1024 * 1024, GUARD = 150; // ms: one tap is not two answers
  let state = null, order = [], shown = 0;

  // ---- names and storage -------------------------------------------------
  const clean = (name) => String(name).normalize("NFC").replace(/[\p{Cc}\p{Cf}\p{Cs}]/gu, " ").replace(/\s+/g, " ").trim().slice(0, 80).trim();
  const folded = (name) => name.toLowerCase();
  const place = (name) => `rating:${data.page}:${folded(name)}`;
  function stored(store, key, value) { // a page from disk may have no storage at all
    try {
      if (value === undefined) return window[store].getItem(key);
      window[store].setItem(key, value);
      return value;
    } catch { return null; }
  }
  const isAnswer = (id, value) => items.has(id) && values.includes(value);

  function load(name) {
    const fresh = { rater: name, started: new Date().toISOString(), answers: {}, log: [] };
    let found = null;
    try { found = JSON.parse(stored("localStorage", place(name)) || "null"); } catch { found = null; }
    if (!found || typeof found !== "object" || typeof found.answers !== "object" || !found.answers) return fresh;
    for (const [id, answer] of Object.entries(found.answers))
      if (answer && isAnswer(id, answer.value)) fresh.answers[id] = { value: answer.value, seconds: Number(answer.seconds) || 0 };
    const log = Array.isArray(found.log) ? found.log.filter((id) => fresh.answers[id]) : [];
    fresh.log = [...new Set([...log, ...Object.keys(fresh.answers)])];
    if (typeof found.started === "string") fresh.started = found.started;
    fresh.at = items.has(found.at) ? found.at : undefined;
    return fresh;
  }
  function keep() {
    const kept = stored("localStorage", place(state.rater), JSON.stringify(state)) !== null;
    by("unsaved").hidden = kept;
  }

  // ---- the order of one rater: the same after a reload and on another device -
  function generator(text) { // FNV-1a seeds, then sfc32
    const seed = (salt) => {
      let hash = 2166136261 ^ salt;
      for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 16777619);
      return hash >>> 0;
    };
    let [a, b, c, d] = [seed(1), seed(2), seed(3), 1];
    const next = () => {
      const t = (((a + b) | 0) + d) | 0;
      d = (d + 1) | 0; a = b ^ (b >>> 9); b = (c + (c << 3)) | 0; c = (((c << 21) | (c >>> 11)) + t) | 0;
      return (t >>> 0) / 4294967296;
    };
    for (let i = 0; i < 20; i += 1) next();
    return next;
  }
  function shuffled(name) {
    const draw = generator(`${data.page}\n${folded(name)}`), queue = data.items.map((item) => item.id);
    for (let i = queue.length - 1; i > 0; i -= 1) {
      const j = Math.floor(draw() * (i + 1));
      [queue[i], queue[j]] = [queue[j], queue[i]];
    }
    // a picture that comes twice is kept apart from itself
    const gap = Math.min(12, Math.floor(queue.length / 3)), result = [];
    while (queue.length) {
      const recent = new Set(result.slice(-gap).map((id) => items.get(id).image));
      const index = gap ? queue.findIndex((id) => !recent.has(items.get(id).image)) : 0;
      result.push(queue.splice(Math.max(index, 0), 1)[0]);
    }
    return result;
  }

  // ---- what is on the screen ----------------------------------------------
  function screen(name) {
    for (const id of ["start", "task", "end"]) by(id).hidden = id !== name;
    window.scrollTo(0, 0);
  }
  const source = (index) => `data:image/jpeg;base64,${data.images[index]}`;
  const done = () => Object.keys(state.answers).length;
  const at = () => Math.max(order.indexOf(state.at), 0);

  function show(id) {
    state.at = id;
    keep();
    const item = items.get(id), references = by("references");
    references.replaceChildren(...item.references.map((index, number) => {
      const image = new Image();
      image.alt = `Reference picture ${number + 1}`;
      image.src = source(index);
      return image;
    }));
    by("candidate").src = source(item.image);
    by("task").dataset.item = id;
    by("bar").value = done();
    by("place").textContent = `${at() + 1} of ${order.length} · ${done()} answered`;
    for (const button of by("answers").children)
      button.setAttribute("aria-pressed", String(state.answers[id]?.value === Number(button.dataset.value)));
    by("back").disabled = at() === 0;
    by("next").disabled = at() === order.length - 1;
    by("undo").disabled = !state.log.length;
    screen("task");
    shown = performance.now();
  }
  function finish() {
    const left = order.length - done();
    by("verdict").textContent = left ? "Paused" : "Thank you, that was the last one";
    by("count").textContent = `${done()} of ${order.length} questions answered by ${state.rater}.`;
    by("return").textContent = left ? "Go on" : "Back to the pictures";
    screen("end");
  }
  function begin(known) {
    state = known;
    order = shuffled(state.rater);
    stored("sessionStorage", `rating:${data.page}`, state.rater);
    resume();
  }
  function resume() {
    const open = order.find((id) => !state.answers[id]);
    if (open === undefined) { keep(); finish(); } else show(state.at && !state.answers[state.at] ? state.at : open);
  }

  // ---- what a rater does ---------------------------------------------------
  function answer(value) {
    const id = state.at, seconds = (performance.now() - shown) / 1000;
    if (seconds * 1000 < GUARD) return;
    state.answers[id] = { value, seconds: Math.round(seconds * 10) / 10 };
    state.log = [...state.log.filter((other) => other !== id), id];
    const later = order.slice(at() + 1).concat(order).find((other) => !state.answers[other]);
    keep();
    if (later === undefined) finish(); else show(later);
  }
  function move(step) {
    const target = order[at() + step];
    if (target !== undefined) show(target);
  }
  function undo() {
    const id = state.log.pop();
    if (id === undefined) return;
    delete state.answers[id];
    show(id);
  }

  // ---- files -----------------------------------------------------------------
  function download(text, type, ending) {
    const link = document.createElement("a");
    const slug = state.rater.normalize("NFKD").replace(/[^A-Za-z0-9]+/g, "-").replace(/^-+|-+$/g, "") || "rater";
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = `answers-${slug}.${ending}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }
  const given = () => order.filter((id) => state.answers[id]).map((id) => ({ id, ...state.answers[id] }));
  function saveJson() {
    const head = { schema: data.schema, page: data.page, rater: state.rater, started: state.started };
    const body = { ...head, exported: new Date().toISOString(), answers: given() };
    download(JSON.stringify(body, null, 1), "application/json", "json");
  }
  function cell(value) { // what a spreadsheet would run as a formula gets an apostrophe in front
    const text = /^[=+\-@\t\r]/.test(String(value)) ? `'${value}` : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }
  function saveCsv() {
    const now = new Date().toISOString();
    const rows = given().map((row) => [data.page, state.rater, now, row.id, row.value, row.seconds]);
    const lines = [["page", "rater", "exported", "id", "value", "seconds"], ...rows].map((row) => row.map(cell).join(","));
    download(`${lines.join("\r\n")}\r\n`, "text/csv", "csv");
  }
  function complain(text) {
    by("problem").textContent = text;
    by("problem").hidden = !text;
  }
  async function read(file) {
    let body = null;
    if (!file) return;
    if (file.size > LIMIT) { complain("This file is too large to be saved answers."); return; }
    try { body = JSON.parse(await file.text()); } catch { body = null; }
    const name = clean(body?.rater ?? "");
    if (body?.schema !== data.schema || !Array.isArray(body.answers) || !name) {
      complain("This file holds no answers that were saved from this page.");
      return;
    }
    if (body.page !== data.page) { complain("These answers belong to another version of this page."); return; }
    complain("");
    const known = load(name);
    for (const entry of body.answers)
      if (entry && isAnswer(entry.id, entry.value) && !known.answers[entry.id]) {
        known.answers[entry.id] = { value: entry.value, seconds: Number(entry.seconds) || 0 };
        known.log.push(entry.id);
      }
    begin(known);
  }

  // ---- wiring ----------------------------------------------------------------
  by("who").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = clean(by("name").value);
    if (name) { complain(""); begin(load(name)); } else complain("Please type a name.");
  });
  by("import").addEventListener("change", (event) => { read(event.target.files[0]); event.target.value = ""; });
  by("answers").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) answer(Number(button.dataset.value));
  });
  by("back").addEventListener("click", () => move(-1));
  by("next").addEventListener("click", () => move(1));
  by("undo").addEventListener("click", undo);
  by("save").addEventListener("click", finish);
  by("json").addEventListener("click", saveJson);
  by("csv").addEventListener("click", saveCsv);
  by("return").addEventListener("click", () => (done() < order.length ? resume() : show(order[at()])));
  by("leave").addEventListener("click", () => {
    stored("sessionStorage", `rating:${data.page}`, "");
    by("name").value = "";
    screen("start");
    by("name").focus();
  });
  document.addEventListener("keydown", (event) => {
    if (by("task").hidden || event.repeat || event.altKey || event.metaKey) return;
    const key = event.key.toLowerCase(), choice = data.choices[Number(key) - 1];
    if (key === "u" || key === "backspace" || (key === "z" && event.ctrlKey)) undo();
    else if (event.ctrlKey) return;
    else if (key === "arrowleft") move(-1);
    else if (key === "arrowright") move(1);
    else if (/^[1-9]$/.test(key) && choice) answer(choice.value);
    else return;
    event.preventDefault();
  });

  const last = stored("sessionStorage", `rating:${data.page}`);
  if (last) begin(load(clean(last))); else { screen("start"); by("name").focus(); }
})();
