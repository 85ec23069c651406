// LoRA Loader (many): its rows as a table. Without this file they are lines in a text box, which says the same.
import { app } from "../../../scripts/app.js";

const NODE = "LorakitLoraLoader";
const TABLE = "lorakit rows";
const WIDTH = 460; // pixels, as all below
const LINE = 26;
const MARGIN = 20; // of a widget, above and below
const STEP = 0.05; // of the arrow keys
const WORDS = {
  en: { lora: "LoRA", model: "model", clip: "CLIP", blocks: "blocks", add: "+ add a LoRA", all: "all on or off", on: "on or off", up: "up", down: "down", remove: "remove", missing: "no such file" },
  zh: { lora: "LoRA", model: "模型", clip: "CLIP", blocks: "分块", add: "+ 添加 LoRA", all: "全部开或关", on: "开或关", up: "上移", down: "下移", remove: "删除", missing: "没有这个文件" },
  ja: { lora: "LoRA", model: "モデル", clip: "CLIP", blocks: "ブロック", add: "+ LoRA を追加", all: "すべてオン・オフ", on: "オン・オフ", up: "上へ", down: "下へ", remove: "削除", missing: "ファイルがない" },
};
const STYLE = `
.lorakit-rows { display: flex; flex-direction: column; gap: 2px; font: 12px sans-serif; overflow-y: auto; }
.lorakit-rows > div { display: flex; gap: 3px; align-items: center; flex: 0 0 ${LINE - 2}px; }
.lorakit-rows input:not([type]), .lorakit-rows span { width: 46px; box-sizing: border-box; text-align: center; }
.lorakit-rows input:not([type]) { height: 22px; background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd);
  border: 1px solid var(--border-color, #444); border-radius: 4px; }
.lorakit-rows .name { flex: 1 1 80px; min-width: 60px; text-align: left !important; }
.lorakit-rows .blocks { width: 76px !important; }
.lorakit-rows .tools { width: 54px; text-align: right; }
.lorakit-rows .off { opacity: 0.5; }
.lorakit-rows .missing { color: var(--error-text, #f66) !important; }
.lorakit-rows span { color: var(--descrip-text, #999); }
.lorakit-rows button { background: none; border: 0; padding: 0 2px; color: var(--input-text, #ddd); cursor: pointer; }
.lorakit-rows .add { height: 22px; background: var(--comfy-input-bg, #222); border-radius: 4px; flex: 1; }`;

let files = []; // as the host lists them
let words = WORDS.en;

// The text of `rows`, as nodes/host/rows.py reads it, and back.
function parsed(text) {
  return text.split("\n").flatMap((line) => {
    const on = !line.trim().startsWith("#");
    const plain = line.trim().replace(/^[#\s]+/, "");
    const tags = [...plain.matchAll(/<lora:([^>]*)>/g)].map(([, tag]) => {
      const parts = tag.split(":").map((one) => one.trim());
      const blocks = parts.find((one) => /^lbw=/i.test(one)) ?? "";
      const [name, strength, clip] = parts.filter((one) => one !== blocks);
      return [name, strength, clip, blocks.slice(4)];
    });
    const rows = tags.length ? tags : plain ? [plain.split("|").map((one) => one.trim())] : [];
    return rows.map(([name, strength, clip, blocks]) => ({ on, name, strength: strength ?? "", clip: clip ?? "", blocks: blocks ?? "" }));
  });
}

function written(rows) {
  return rows
    .filter((row) => row.name)
    .map((row) => `${row.on ? "" : "# "}${[row.name, row.strength, row.clip, row.blocks].join(" | ").replace(/[ |]+$/, "")}`)
    .join("\n");
}

function isThere(name) {
  const wanted = name.replaceAll("\\", "/");
  return files.some((file) => {
    const path = file.replaceAll("\\", "/");
    const bare = path.replace(/\.[^./]*$/, "");
    return [path, bare, path.split("/").pop(), bare.split("/").pop()].includes(wanted);
  });
}

function listed(defs) {
  const input = defs?.input?.required?.lora_name ?? [];
  files = (Array.isArray(input[0]) ? input[0] : input[1]?.options) ?? files;
}

function element(tag, className, more = {}) {
  return Object.assign(document.createElement(tag), { className, ...more });
}

function table(node, text) {
  const box = element("div", "lorakit-rows");
  let rows = [];

  function changed() {
    text.value = written(rows);
    node.graph?.setDirtyCanvas?.(true, true);
  }

  function resized(before) {
    node.setSize([node.size[0], node.size[1] + (rows.length - before) * LINE]);
    draw();
    changed();
  }

  // A row is not drawn anew where one of its fields changes: the next field has the keyboard already.
  function field(row, key, className, told = () => {}) {
    const input = element("input", className, { value: row[key], spellcheck: false, title: words[className] ?? "" });
    input.addEventListener("change", () => {
      row[key] = input.value.replace(/[|\n]/g, " ").trim() || (key === "name" ? row.name : "");
      told();
      changed();
    });
    return input;
  }

  function strengths(row) {
    const told = () => { clip.placeholder = row.strength || "1"; };
    const model = field(row, "strength", "model", told);
    const clip = field(row, "clip", "clip");
    model.placeholder = "1";
    told();
    for (const [input, key] of [[model, "strength"], [clip, "clip"]]) {
      input.addEventListener("keydown", ({ key: pressed }) => {
        const way = { ArrowUp: 1, ArrowDown: -1 }[pressed];
        const number = Number(input.value || input.placeholder);
        if (!way || Number.isNaN(number)) return;
        input.value = row[key] = String(Math.round((number + way * STEP) * 100) / 100);
        told();
        changed();
      });
    }
    return [model, clip];
  }

  function file(row) {
    const told = () => {
      const missing = row.name && !isThere(row.name);
      input.title = missing ? `${row.name}: ${words.missing}` : row.name;
      input.classList.toggle("missing", Boolean(missing));
    };
    const input = field(row, "name", "name", told);
    told();
    input.setAttribute("list", box.list.id);
    // The list shows what fits the text: all of it where there is none.
    input.addEventListener("focus", () => Object.assign(input, { placeholder: row.name, value: "" }));
    input.addEventListener("blur", () => { input.value = row.name; });
    return input;
  }

  function tool(sign, title, act) {
    const button = element("button", "", { type: "button", textContent: sign, title });
    button.addEventListener("click", act);
    return button;
  }

  function line(row, at) {
    const div = element("div", row.on ? "" : "off");
    const on = element("input", "", { type: "checkbox", checked: row.on, title: words.on });
    on.addEventListener("change", () => { row.on = on.checked; draw(); changed(); });
    const tools = element("span", "tools");
    const move = (to) => {
      if (to < 0 || to >= rows.length) return;
      rows.splice(to, 0, ...rows.splice(at, 1));
      draw();
      changed();
    };
    tools.append(
      tool("▲", words.up, () => move(at - 1)),
      tool("▼", words.down, () => move(at + 1)),
      tool("✕", words.remove, () => { rows.splice(at, 1); resized(rows.length + 1); }),
    );
    div.append(on, file(row), ...strengths(row), field(row, "blocks", "blocks"), tools);
    return div;
  }

  function draw() {
    const head = element("div", "");
    const all = element("input", "", { type: "checkbox", title: words.all });
    all.checked = rows.length > 0 && rows.every((row) => row.on);
    all.indeterminate = !all.checked && rows.some((row) => row.on);
    all.addEventListener("change", () => { rows.forEach((row) => { row.on = all.checked; }); draw(); changed(); });
    head.append(all, ...["name", "model", "clip", "blocks", "tools"].map((name) => element("span", name, { textContent: words[name === "name" ? "lora" : name] ?? "" })));
    const foot = element("div", "");
    foot.append(Object.assign(tool(words.add, "", () => {
      rows.push({ on: true, name: "", strength: "1", clip: "", blocks: "" });
      resized(rows.length - 1);
      box.querySelectorAll("input.name")[rows.length - 1].focus();
    }), { className: "add" }));
    box.list.replaceChildren(...files.map((value) => element("option", "", { value })));
    box.replaceChildren(box.list, head, ...rows.map(line), foot);
  }

  box.list = element("datalist", "", { id: `lorakit-files-${Math.random().toString(36).slice(2)}` });
  box.addEventListener("keydown", (event) => event.stopPropagation());
  return { box, height: () => (rows.length + 2) * LINE + MARGIN, draw, read() { rows = parsed(text.value ?? ""); draw(); }, on: () => written(rows.filter((row) => row.on)) };
}

app.registerExtension({
  name: "lorakit.loader",

  setup() {
    document.head.append(element("style", "", { textContent: STYLE }));
    words = WORDS[app.ui?.settings?.getSettingValue?.("Comfy.Locale")?.slice(0, 2)] ?? WORDS.en;
  },

  beforeRegisterNodeDef(_, defs) {
    if (defs.name === "LorakitLoadLora") listed(defs);
  },

  refreshComboInNodes(defs) {
    listed(defs?.LorakitLoadLora);
    app.graph.nodes.forEach((node) => node.lorakitRows?.draw());
  },

  nodeCreated(node) {
    const text = node.comfyClass === NODE && node.widgets?.find((one) => one.name === "rows");
    if (!text || !node.addDOMWidget) return;
    const rows = (node.lorakitRows = table(node, text));
    const widget = node.addDOMWidget(TABLE, "lorakit_rows", rows.box, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: rows.height,
      getMaxHeight: rows.height,
      getValue: () => text.value,
      setValue() {},
    });
    widget.serialize = false;
    node.widgets.splice(node.widgets.indexOf(text) + 1, 0, ...node.widgets.splice(node.widgets.indexOf(widget), 1));
    text.hidden = text.options.hidden = true;
    // What is off is not sent: turning its strength computes nothing anew.
    text.serializeValue = () => rows.on();

    const { onConfigure } = node;
    node.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      rows.read();
    };
    rows.read();
    const [width, height] = node.computeSize();
    node.lorakitWidth = WIDTH; // for report.js, which gives every node its size
    node.setSize([Math.max(width, WIDTH), height]);
  },
});
