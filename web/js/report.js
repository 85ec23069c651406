// The report of each node, on the node: the front end shows a node's text for its own nodes alone.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { ComfyWidgets } from "../../../scripts/widgets.js";

const KEPT = "lorakit report"; // the property that a saved graph keeps the text under
const WIDTH = 340; // pixels, as all below
const LINES = 92; // five lines; the rest scrolls, or shows in a larger node
const PICTURE = 260; // a square one between the report and the edge

function show(node, text) {
  const widget = node.widgets?.find((one) => one.name === KEPT);
  if (!widget) return;
  node.properties[KEPT] = text;
  widget.value = text;
  node.setDirtyCanvas?.(true);
}

app.registerExtension({
  name: "lorakit.report",

  setup() {
    api.addEventListener("execution_error", ({ detail }) => {
      const node = app.graph.getNodeById(detail.node_id);
      if (node) show(node, `error · ${detail.exception_message.trim()}`);
    });
  },

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Lorakit")) return;
    const spec = ["STRING", { multiline: true, placeholder: "the report, after a run" }];
    const { widget } = ComfyWidgets.STRING(node, KEPT, spec, app);
    // Neither sent with the graph nor among the values that are saved by position.
    widget.serialize = widget.options.serialize = false;
    widget.options.getMinHeight = () => LINES;
    widget.options.read_only = true;
    widget.label = "report";
    if (widget.inputEl) widget.inputEl.readOnly = true;

    const { onExecuted, onConfigure } = node;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.text) show(this, output.text.join("\n"));
    };
    node.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      if (this.properties[KEPT]) show(this, this.properties[KEPT]);
    };

    const [width, height] = node.computeSize();
    const picture = node.outputs?.some((one) => one.type === "IMAGE") ? PICTURE : 0;
    node.setSize([Math.max(width, node.lorakitWidth ?? WIDTH), height + picture]);
  },
});
