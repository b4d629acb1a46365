// The plan of a training job: stages with steps and, before it is started, tokens, time and memory.
import { send } from "./api.js";
import { make } from "./make.js";

// Asks the server for the plan of a job and shows it in `root`. Throws what was refused.
export async function showPlan(root, body) {
  root.hidden = false;
  root.replaceChildren(make("h2", "", `Plan of ${body.command}`), make("p", "help", "The command is asked, and times a few steps; this takes some seconds."));
  let plan;
  try { plan = await send("POST", "/jobs/plan", body); } catch (error) { root.hidden = true; throw error; }
  const close = make("button", "quiet", "Close");
  close.type = "button";
  close.onclick = () => { root.hidden = true; };
  const head = make("div", "row between");
  head.append(make("h2", "", `Plan of ${body.command}`), close);
  root.replaceChildren(head, planTable(plan), ...memory(plan.memory || {}));
}

export function planTable(plan, step = null) {
  const wide = make("div", "wide-table"), table = make("table"), head = make("tr"), rows = make("tbody");
  const priced = plan.stages.some(stage => stage.seconds);
  const names = ["Stage", "Block", "From step", "Steps", ...(plan.tokens ? ["Tokens"] : []), ...(priced ? ["Minutes"] : [])];
  head.append(...names.map(name => Object.assign(make("th", "", name), { scope: "col" })));
  for (const stage of plan.stages) {
    const row = make("tr"), here = step !== null && step >= stage.first && step < stage.first + stage.steps;
    if (here) row.setAttribute("aria-current", "step");
    const cells = [stage.phase, stage.block, stage.first, stage.steps, ...(plan.tokens ? [stage.tokens] : []), ...(priced ? [(stage.seconds / 60).toFixed(1)] : [])];
    row.append(...cells.map(cell => make("td", "", typeof cell === "number" ? cell.toLocaleString() : String(cell))));
    rows.append(row);
  }
  const section = make("thead");
  section.append(head);
  table.append(section, rows);
  table.setAttribute("aria-label", "Stages of the plan");
  wide.append(table);
  if (plan.tokens) {
    const minutes = plan.seconds ? `, about ${(plan.seconds / 60).toFixed(1)} minutes if the machine does nothing else` : "";
    wide.append(make("p", "help", `${plan.steps.toLocaleString()} steps of ${plan.tokens_per_step.toLocaleString()} tokens: ${plan.tokens.toLocaleString()} tokens${minutes}.`));
  }
  return wide;
}

function memory(parts) {
  const sizes = Object.entries(parts).filter(([name, value]) => typeof value === "number" && value > 2 ** 20 && name !== "parameters" && name !== "limit" && name !== "total");
  if (!parts.total) return [];
  const size = bytes => `${(bytes / 2 ** 30).toFixed(2)} GiB`;
  return [make("p", "help", `Memory: ${size(parts.total)} (${sizes.map(([name, value]) => `${name} ${size(value)}`).join(", ")})${parts.limit ? ` of ${size(parts.limit)}` : ""}.`)];
}
