// llama.cpp by the npm package node-llama-cpp: reads token ids as lines of JSON, writes greedy continuations with their seconds.
// Started by llamacpp.py in the folder where the package is installed; the last argument is the job. The package is not
// beside this file, so it is imported by its place; it starts processes of its own, which `node -e` would hand this text.
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const place = resolve("node_modules", "node-llama-cpp"), about = JSON.parse(readFileSync(resolve(place, "package.json")));
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(resolve(place, about.main)));
const job = JSON.parse(process.argv.at(-1));
const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const llama = await getLlama({ gpu: false, build: "never", maxThreads: job.threads, logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath: job.file });
const context = await model.createContext({ contextSize: job.window, batchSize: job.window, threads: job.threads });
const sequence = context.getSequence();
say({ threads: context.currentThreads });
for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line), ends = new Set(asked.ends), ids = [];
  await sequence.clearHistory();
  const used = process.cpuUsage(), started = process.hrtime.bigint();
  for await (const token of sequence.evaluate(asked.prompt, { temperature: 0, yieldEogToken: true })) {
    ids.push(token);
    if (ids.length >= asked.new || ends.has(token)) break;
  }
  const wall = Number(process.hrtime.bigint() - started) / 1e9, spent = process.cpuUsage(used);
  say({ ids, wall, cpu: (spent.user + spent.system) / 1e6 });
}
process.exit(0);
